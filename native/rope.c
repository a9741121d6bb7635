/* Rotation, its tables and its comparison on the CPU: the loops around rope_math.h.
 *
 * A row's turns are computed once, a block of pairs at a time, and applied to all of its heads. Functions of loops are
 * inlined with constant layouts and types into rotate_rows and cos_sin_rows, which are compiled for each level of
 * vectors.h. Everything is float64 until the one rounding of ggext_store. */
#include "rope.h"

#include <string.h>

#include "vectors.h"

/* Turns are computed once for a block of pairs and used for all heads of the row; a block lies on the stack, so no
 * entry allocates and none can fail. 64 pairs are a whole head of 128 dimensions. */
enum { BLOCK = 64 };

/* The turns of n pairs of one row, from pair `begin` on. */
struct block {
    size_t begin;
    size_t n;
    double cos[BLOCK];
    double sin[BLOCK];
};

size_t ggext_first_bad_position(const struct ggext_table *table, size_t n_pairs)
{
    const double largest = 0x1p+62;
    struct ggext_positions positions = table->positions;
    double fastest = 1.0;
    for (size_t i = 0; i < n_pairs; i++)
        fastest = fmax(fastest, fabs(table->inv_freq[i]));
    double limit = fmin(GGEXT_MAX_POSITION, GGEXT_MAX_ANGLE / fastest);
    int64_t offset = positions.offset;
    bool offset_fits = fabs((double)offset) <= largest;
    positions.offset = 0;
    for (size_t i = 0; i < positions.n; i++) {
        int64_t position = ggext_position_at(positions, i);
        if (!offset_fits || fabs((double)position) > largest || fabs((double)(position + offset)) > limit)
            return i;
    }
    return positions.n;
}

/* Fills angles with those of a table at a row, for the block's pairs. */
GGEXT_INLINE void fill_angles(double *angles, const struct block *block, const struct ggext_table *table, size_t row)
{
    const double *inv_freq = table->inv_freq + block->begin;
    double position = (double)ggext_position_at(table->positions, row);
    for (size_t i = 0; i < block->n; i++)
        angles[i] = ggext_reduced_angle(position, inv_freq[i]);
}

/* Fills the block that begins at pair `begin` with the turns of a row. */
GGEXT_INLINE void fill_block(struct block *block, const struct ggext_rope *rope, size_t row, size_t begin)
{
    double angles[BLOCK] = {0.0};
    double from[BLOCK];
    double gain = 1.0;
    block->begin = begin;
    block->n = rope->n_pairs - begin < BLOCK ? rope->n_pairs - begin : BLOCK;

    if (rope->to.inv_freq != NULL) {
        fill_angles(angles, block, &rope->to, row);
        gain = rope->to.gain;
    }
    if (rope->from.inv_freq != NULL) {
        fill_angles(from, block, &rope->from, row);
        for (size_t i = 0; i < block->n; i++)
            angles[i] -= from[i];
        gain /= rope->from.gain;
    }
    for (size_t i = 0; i < block->n; i++) {
        struct ggext_turn turn = ggext_turn_by(angles[i], gain);
        block->cos[i] = turn.cos;
        block->sin[i] = turn.sin;
    }
}

/* Returns pair i of the block, turned, and writes to *places where its values stand in `head`, which begins at the
 * block's first pair. Its index is signed and its layout and type are constants, or the loops around it stay scalar. */
GGEXT_INLINE struct ggext_pair turned_pair(const struct block *block, enum ggext_layout layout, enum ggext_type type,
                                           long long n_pairs, const void *head, long long i,
                                           struct ggext_places *places)
{
    *places = ggext_places_of(layout, n_pairs, i);
    struct ggext_pair pair = {ggext_load(type, head, places->first), ggext_load(type, head, places->second)};
    struct ggext_turn turn = {block->cos[i], block->sin[i]};
    return ggext_turned(pair, turn);
}

/* Returns how many bytes after a head's begin the first value of the block stands. */
GGEXT_INLINE size_t block_offset(const struct block *block, enum ggext_layout layout, enum ggext_type type)
{
    return (size_t)ggext_places_of(layout, 0, (long long)block->begin).first * ggext_type_size(type);
}

/* One call of ggext_rotate, for the slices. */
struct rotate_task {
    const struct ggext_rope *rope;
    struct ggext_shape shape;
    const char *rows;
    char *out;
};

/* Turns the block's pairs in all heads of a row; layout and type are constants at each call, so that the loop becomes
 * vector instructions. */
GGEXT_INLINE void rotate_heads(const struct rotate_task *task, const struct block *block, enum ggext_layout layout,
                               enum ggext_type type, const char *row, char *out)
{
    const long long n_pairs = (long long)task->rope->n_pairs;
    const long long n = (long long)block->n;
    const size_t stride = task->shape.head_dim * ggext_type_size(type);
    const size_t offset = block_offset(block, layout, type);
    for (size_t head = 0; head < task->shape.n_heads; head++) {
        const char *in_head = row + head * stride + offset;
        char *out_head = out + head * stride + offset;
        GGEXT_INDEPENDENT
        for (long long i = 0; i < n; i++) {
            struct ggext_places places;
            struct ggext_pair pair = turned_pair(block, layout, type, n_pairs, in_head, i, &places);
            ggext_store(type, out_head, places.first, pair.first);
            ggext_store(type, out_head, places.second, pair.second);
        }
    }
}

/* rotate_heads with the task's type. */
GGEXT_INLINE void rotate_typed_heads(const struct rotate_task *task, const struct block *block,
                                     enum ggext_layout layout, const char *row, char *out)
{
    switch (task->shape.type) {
    case GGEXT_F32:
        rotate_heads(task, block, layout, GGEXT_F32, row, out);
        break;
    case GGEXT_F16:
        rotate_heads(task, block, layout, GGEXT_F16, row, out);
        break;
    case GGEXT_BF16:
        rotate_heads(task, block, layout, GGEXT_BF16, row, out);
        break;
    }
}

/* A ggext_slice: turns rows [begin, end) of a rotate_task and copies the dimensions that do not turn. */
GGEXT_INLINE void rotate_rows(void *context, size_t part, size_t begin, size_t end)
{
    (void)part;
    const struct rotate_task *task = context;
    const struct ggext_rope *rope = task->rope;
    const size_t n_heads = task->shape.n_heads;
    const size_t head_size = task->shape.head_dim * ggext_type_size(task->shape.type);
    const size_t tail = (task->shape.head_dim - 2 * rope->n_pairs) * ggext_type_size(task->shape.type);
    struct block block;

    for (size_t row = begin; row < end; row++) {
        const char *in_row = task->rows + row * n_heads * head_size;
        char *out_row = task->out + row * n_heads * head_size;
        for (size_t pair = 0; pair < rope->n_pairs; pair += BLOCK) {
            fill_block(&block, rope, row, pair);
            if (rope->layout == GGEXT_NORM)
                rotate_typed_heads(task, &block, GGEXT_NORM, in_row, out_row);
            else
                rotate_typed_heads(task, &block, GGEXT_NEOX, in_row, out_row);
        }
        if (tail > 0 && out_row != in_row)
            for (size_t head = 1; head <= n_heads; head++)
                memcpy(out_row + head * head_size - tail, in_row + head * head_size - tail, tail);
    }
}

GGEXT_COMPILE(rotate_rows)

void ggext_rotate(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows, void *out, size_t threads)
{
    struct rotate_task task = {rope, shape, rows, out};
    ggext_parallel(shape.n, shape.n_heads * shape.head_dim, threads, GGEXT_CHOSEN(rotate_rows), &task);
}

/* One call of ggext_cos_sin, for the slices. */
struct cos_sin_task {
    const struct ggext_rope *rope;
    void *cos_out;
    void *sin_out;
    bool wide;
};

/* A ggext_slice: writes the turns of rows [begin, end) of a cos_sin_task. */
GGEXT_INLINE void cos_sin_rows(void *context, size_t part, size_t begin, size_t end)
{
    (void)part;
    const struct cos_sin_task *task = context;
    const size_t n_pairs = task->rope->n_pairs;
    struct block block;

    for (size_t row = begin; row < end; row++) {
        for (size_t pair = 0; pair < n_pairs; pair += BLOCK) {
            const size_t place = row * n_pairs + pair;
            fill_block(&block, task->rope, row, pair);
            if (task->wide) {
                memcpy((double *)task->cos_out + place, block.cos, block.n * sizeof(double));
                memcpy((double *)task->sin_out + place, block.sin, block.n * sizeof(double));
                continue;
            }
            for (size_t i = 0; i < block.n; i++) {
                ((float *)task->cos_out)[place + i] = (float)block.cos[i];
                ((float *)task->sin_out)[place + i] = (float)block.sin[i];
            }
        }
    }
}

GGEXT_COMPILE(cos_sin_rows)

void ggext_cos_sin(const struct ggext_rope *rope, size_t n_positions, void *cos_out, void *sin_out, bool wide,
                   size_t threads)
{
    struct cos_sin_task task = {rope, cos_out, sin_out, wide};
    ggext_parallel(n_positions, rope->n_pairs, threads, GGEXT_CHOSEN(cos_sin_rows), &task);
}

/* One call of ggext_worst_error; each slice has a place of its own for its answer. */
struct worst_task {
    const struct ggext_rope *rope;
    struct ggext_shape shape;
    const char *rows;
    const char *actual;
    struct ggext_worst worst[GGEXT_MAX_THREADS];
};

/* Keeps the larger difference, and of equal ones that which comes first in memory. */
GGEXT_INLINE void keep_worst(struct ggext_worst *worst, double error, size_t row, size_t head, size_t dimension)
{
    if (!ggext_is_finite(error))
        error = INFINITY;
    bool earlier = row < worst->row || (row == worst->row && head < worst->head) ||
                   (row == worst->row && head == worst->head && dimension < worst->dimension);
    if (error > worst->error || (error == worst->error && earlier))
        *worst = (struct ggext_worst){error, row, head, dimension};
}

/* Compares one head: its pairs in the block and, with the first block, the dimensions that must not have changed. */
GGEXT_INLINE void compare_block(const struct worst_task *task, const struct block *block, size_t row, size_t head,
                                struct ggext_worst *worst)
{
    const struct ggext_rope *rope = task->rope;
    const enum ggext_type type = task->shape.type;
    const size_t head_dim = task->shape.head_dim;
    const size_t offset = (row * task->shape.n_heads + head) * head_dim * ggext_type_size(type);
    const char *before = task->rows + offset;
    const char *actual = task->actual + offset;
    const size_t shift = block_offset(block, rope->layout, type);
    const long long moved = (long long)(shift / ggext_type_size(type));

    for (long long i = 0; i < (long long)block->n; i++) {
        struct ggext_places places;
        struct ggext_pair pair =
            turned_pair(block, rope->layout, type, (long long)rope->n_pairs, before + shift, i, &places);
        places.first += moved;
        places.second += moved;
        keep_worst(worst, fabs(ggext_load(type, actual, places.first) - pair.first), row, head, (size_t)places.first);
        keep_worst(worst, fabs(ggext_load(type, actual, places.second) - pair.second), row, head,
                   (size_t)places.second);
    }
    if (block->begin == 0)
        for (long long i = 2 * (long long)rope->n_pairs; i < (long long)head_dim; i++)
            keep_worst(worst, fabs(ggext_load(type, actual, i) - ggext_load(type, before, i)), row, head, (size_t)i);
}

/* A ggext_slice: compares rows [begin, end) of a worst_task and keeps the worst in the place of its part. */
static void compare_rows(void *context, size_t part, size_t begin, size_t end)
{
    struct worst_task *task = context;
    struct ggext_worst worst = {-1.0, 0, 0, 0};
    struct block block;

    for (size_t row = begin; row < end; row++) {
        for (size_t pair = 0; pair < task->rope->n_pairs; pair += BLOCK) {
            fill_block(&block, task->rope, row, pair);
            for (size_t head = 0; head < task->shape.n_heads; head++)
                compare_block(task, &block, row, head, &worst);
        }
    }
    task->worst[part] = worst;
}

struct ggext_worst ggext_worst_error(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows,
                                     const void *actual, size_t threads)
{
    struct worst_task task = {.rope = rope, .shape = shape, .rows = rows, .actual = actual};
    size_t parts = ggext_parallel(shape.n, shape.n_heads * shape.head_dim, threads, compare_rows, &task);
    struct ggext_worst worst = task.worst[0];
    for (size_t i = 1; i < parts; i++)
        keep_worst(&worst, task.worst[i].error, task.worst[i].row, task.worst[i].head, task.worst[i].dimension);
    return worst;
}
