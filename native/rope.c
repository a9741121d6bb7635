#include "rope.h"

#include <string.h>

#include "parallel.h"

/* Turns are computed once for a block of pairs and used for all heads of the row; a block lies on the stack, so no
 * entry allocates and none can fail. 64 pairs are a whole head of 128 dimensions. */
enum { BLOCK = 64 };

struct block {
    size_t begin;
    size_t n;
    double cos[BLOCK];
    double sin[BLOCK];
};

static int64_t position_at(struct ggext_positions positions, size_t i)
{
    return positions.wide ? ((const int64_t *)positions.data)[i] : ((const int32_t *)positions.data)[i];
}

size_t ggext_first_bad_position(struct ggext_positions positions, const double *inv_freq, size_t n_pairs)
{
    double fastest = 1.0;
    for (size_t i = 0; i < n_pairs; i++)
        fastest = fmax(fastest, fabs(inv_freq[i]));
    double limit = GGEXT_MAX_ANGLE / fastest;
    for (size_t i = 0; i < positions.n; i++)
        if (fabs((double)position_at(positions, i)) > limit)
            return i;
    return positions.n;
}

/* Fills the block that begins at pair `begin` with the turns at a position. */
static void fill_block(struct block *block, const struct ggext_rope *rope, int64_t position, size_t begin)
{
    block->begin = begin;
    block->n = rope->n_pairs - begin < BLOCK ? rope->n_pairs - begin : BLOCK;
    for (size_t i = 0; i < block->n; i++) {
        struct ggext_turn turn =
            ggext_turn_at((double)position, rope->inv_freq[begin + i], rope->gain, rope->inverse);
        block->cos[i] = turn.cos;
        block->sin[i] = turn.sin;
    }
}

/* Returns pair i of the block, turned, and tells where its values stand in the head. */
static inline struct ggext_pair turned_pair(const struct ggext_rope *rope, const struct block *block,
                                            enum ggext_layout layout, const float *head, size_t i,
                                            struct ggext_places *places)
{
    *places = ggext_places_of(layout, (long long)rope->n_pairs, (long long)(block->begin + i));
    struct ggext_pair pair = {head[places->first], head[places->second]};
    struct ggext_turn turn = {block->cos[i], block->sin[i]};
    return ggext_turned(pair, turn);
}

/* Turns one head's pairs of the block; the layout is a constant at each call, so that the loop vectorizes. */
static inline void rotate_block(const struct ggext_rope *rope, const struct block *block, enum ggext_layout layout,
                                const float *head, float *out)
{
    for (size_t i = 0; i < block->n; i++) {
        struct ggext_places places;
        struct ggext_pair pair = turned_pair(rope, block, layout, head, i, &places);
        out[places.first] = (float)pair.first;
        out[places.second] = (float)pair.second;
    }
}

struct rotate_task {
    const struct ggext_rope *rope;
    struct ggext_positions positions;
    struct ggext_shape shape;
    const float *rows;
    float *out;
};

static void rotate_rows(void *context, size_t part, size_t begin, size_t end)
{
    (void)part;
    const struct rotate_task *task = context;
    const struct ggext_rope *rope = task->rope;
    const size_t head_dim = task->shape.head_dim;
    const size_t tail = head_dim - 2 * rope->n_pairs;
    struct block block;

    for (size_t row = begin; row < end; row++) {
        const float *in_row = task->rows + row * task->shape.n_heads * head_dim;
        float *out_row = task->out + row * task->shape.n_heads * head_dim;
        for (size_t pair = 0; pair < rope->n_pairs; pair += BLOCK) {
            fill_block(&block, rope, position_at(task->positions, row), pair);
            for (size_t head = 0; head < task->shape.n_heads; head++) {
                if (rope->layout == GGEXT_NORM)
                    rotate_block(rope, &block, GGEXT_NORM, in_row + head * head_dim, out_row + head * head_dim);
                else
                    rotate_block(rope, &block, GGEXT_NEOX, in_row + head * head_dim, out_row + head * head_dim);
            }
        }
        if (tail > 0 && out_row != in_row)
            for (size_t head = 1; head <= task->shape.n_heads; head++)
                memcpy(out_row + head * head_dim - tail, in_row + head * head_dim - tail, tail * sizeof(float));
    }
}

void ggext_rotate(const struct ggext_rope *rope, struct ggext_positions positions, struct ggext_shape shape,
                  const float *rows, float *out, size_t threads)
{
    struct rotate_task task = {rope, positions, shape, rows, out};
    ggext_parallel(positions.n, shape.n_heads * shape.head_dim, threads, rotate_rows, &task);
}

struct cos_sin_task {
    const struct ggext_rope *rope;
    struct ggext_positions positions;
    float *cos_out;
    float *sin_out;
};

static void cos_sin_rows(void *context, size_t part, size_t begin, size_t end)
{
    (void)part;
    const struct cos_sin_task *task = context;
    const size_t n_pairs = task->rope->n_pairs;
    struct block block;

    for (size_t row = begin; row < end; row++) {
        for (size_t pair = 0; pair < n_pairs; pair += BLOCK) {
            fill_block(&block, task->rope, position_at(task->positions, row), pair);
            for (size_t i = 0; i < block.n; i++) {
                task->cos_out[row * n_pairs + pair + i] = (float)block.cos[i];
                task->sin_out[row * n_pairs + pair + i] = (float)block.sin[i];
            }
        }
    }
}

void ggext_cos_sin(const struct ggext_rope *rope, struct ggext_positions positions, float *cos_out, float *sin_out,
                   size_t threads)
{
    struct cos_sin_task task = {rope, positions, cos_out, sin_out};
    ggext_parallel(positions.n, rope->n_pairs, threads, cos_sin_rows, &task);
}

struct worst_task {
    const struct ggext_rope *rope;
    struct ggext_positions positions;
    struct ggext_shape shape;
    const float *rows;
    const float *actual;
    struct ggext_worst worst[GGEXT_MAX_THREADS];
};

/* Keeps the larger difference, and of equal ones that which comes first in memory. */
static void keep_worst(struct ggext_worst *worst, double error, size_t row, size_t head, size_t dimension)
{
    if (!isfinite(error))
        error = INFINITY;
    bool earlier = row < worst->row || (row == worst->row && head < worst->head) ||
                   (row == worst->row && head == worst->head && dimension < worst->dimension);
    if (error > worst->error || (error == worst->error && earlier))
        *worst = (struct ggext_worst){error, row, head, dimension};
}

/* Compares one head: its pairs in the block and, with the first block, the dimensions that must not have changed. */
static void compare_block(const struct worst_task *task, const struct block *block, size_t row, size_t head,
                          struct ggext_worst *worst)
{
    const struct ggext_rope *rope = task->rope;
    const size_t head_dim = task->shape.head_dim;
    const size_t offset = (row * task->shape.n_heads + head) * head_dim;
    const float *before = task->rows + offset;
    const float *actual = task->actual + offset;

    for (size_t i = 0; i < block->n; i++) {
        struct ggext_places places;
        struct ggext_pair pair = turned_pair(rope, block, rope->layout, before, i, &places);
        keep_worst(worst, fabs((double)actual[places.first] - pair.first), row, head, (size_t)places.first);
        keep_worst(worst, fabs((double)actual[places.second] - pair.second), row, head, (size_t)places.second);
    }
    if (block->begin == 0)
        for (size_t i = 2 * rope->n_pairs; i < head_dim; i++)
            keep_worst(worst, fabs((double)actual[i] - (double)before[i]), row, head, i);
}

static void compare_rows(void *context, size_t part, size_t begin, size_t end)
{
    struct worst_task *task = context;
    struct ggext_worst worst = {-1.0, 0, 0, 0};
    struct block block;

    for (size_t row = begin; row < end; row++) {
        for (size_t pair = 0; pair < task->rope->n_pairs; pair += BLOCK) {
            fill_block(&block, task->rope, position_at(task->positions, row), pair);
            for (size_t head = 0; head < task->shape.n_heads; head++)
                compare_block(task, &block, row, head, &worst);
        }
    }
    task->worst[part] = worst;
}

struct ggext_worst ggext_worst_error(const struct ggext_rope *rope, struct ggext_positions positions,
                                     struct ggext_shape shape, const float *rows, const float *actual, size_t threads)
{
    struct worst_task task = {.rope = rope, .positions = positions, .shape = shape, .rows = rows, .actual = actual};
    size_t parts = ggext_parallel(positions.n, shape.n_heads * shape.head_dim, threads, compare_rows, &task);
    struct ggext_worst worst = task.worst[0];
    for (size_t i = 1; i < parts; i++)
        keep_worst(&worst, task.worst[i].error, task.worst[i].row, task.worst[i].head, task.worst[i].dimension);
    return worst;
}
