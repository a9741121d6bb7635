/* Rotary position embedding of rows on the CPU. Nothing here knows Python. */
#ifndef GGEXT_ROPE_H
#define GGEXT_ROPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "element.h"

#ifndef GGEXT_FN
#define GGEXT_FN GGEXT_INLINE
#endif
#include "rope_math.h"

/* isfinite without the warning that mingw-w64's gives of every double. */
static inline bool ggext_is_finite(double value)
{
    return value - value == 0.0;
}

/* n whole positions in tokens, int64 where wide, else int32; offset is added to each. */
struct ggext_positions {
    const void *data;
    size_t n;
    bool wide;
    int64_t offset;
};

/* What to turn by: n_pairs angular frequencies, radians per token, and the gain: finite, above zero. No frequencies,
 * NULL, stand for no rotation at all: every angle 0. */
struct ggext_table {
    const double *inv_freq;
    double gain;
    struct ggext_positions positions;
};

/* From how rows are rotated to how they should be: by the difference of the angles and the quotient of the gains. Plain
 * rows are `from` no rotation; the inverse is `to` none. Positions are of the same number in both. */
struct ggext_rope {
    struct ggext_table to;
    struct ggext_table from;
    size_t n_pairs;
    enum ggext_layout layout;
};

/* Rows, C-contiguous: (n, n_heads, head_dim) values of the type; one row a position; head_dim >= 2 * n_pairs. */
struct ggext_shape {
    size_t n;
    size_t n_heads;
    size_t head_dim;
    enum ggext_type type;
};

/* The largest difference found, and where. */
struct ggext_worst {
    double error;
    size_t row;
    size_t head;
    size_t dimension;
};

/* No angle may be larger: 2^53, up to which float64 holds every whole number. */
#define GGEXT_MAX_ANGLE 9007199254740992.0
/* Nor any |position + offset|: runtimes count tokens in 31 bits. */
#define GGEXT_MAX_POSITION 2147483648.0

/* Returns position i with its offset; both must be at most 2^62 in size. */
GGEXT_INLINE int64_t ggext_position_at(struct ggext_positions positions, size_t i)
{
    return positions.offset +
           (positions.wide ? ((const int64_t *)positions.data)[i] : (int64_t)((const int32_t *)positions.data)[i]);
}

/* Returns the index of the first position of a table that is out of bounds: |position| or |offset| above 2^62,
 * |position + offset| above GGEXT_MAX_POSITION, or an angle above GGEXT_MAX_ANGLE for some pair; else the number of
 * positions. inv_freq must be finite. */
size_t ggext_first_bad_position(const struct ggext_table *table, size_t n_pairs);

/* Writes rows, turned, to out, of the same shape and type. out may be rows itself, but must not overlap it otherwise.
 * Dimensions from 2 * n_pairs on are copied. Each value is computed in float64 and rounded once, so the result depends
 * neither on the number of threads nor on the processor. Positions must have passed ggext_first_bad_position. */
void ggext_rotate(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows, void *out, size_t threads);

/* Writes gain * cos and gain * sin of every angle to two arrays of n_positions * n_pairs values: float64 where wide, else
 * float32; layout is not used. Positions must have passed ggext_first_bad_position. */
void ggext_cos_sin(const struct ggext_rope *rope, size_t n_positions, void *cos_out, void *sin_out, bool wide,
                   size_t threads);

/* Returns the largest |actual - turned rows|, the turned rows in float64 and not rounded, and the first place where it
 * occurs. A difference that is not finite, NaN included, counts as INFINITY, so that no comparison overlooks it.
 * There must be at least one value. Positions must have passed ggext_first_bad_position. */
struct ggext_worst ggext_worst_error(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows,
                                     const void *actual, size_t threads);

#endif
