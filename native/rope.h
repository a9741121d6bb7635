/* Rotary position embedding of float32 rows on the CPU. Nothing here knows Python. */
#ifndef GGEXT_ROPE_H
#define GGEXT_ROPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <math.h>

#define GGEXT_FN static inline
#include "rope_math.h"

/* What to turn by. inv_freq: n_pairs angular frequencies, radians per token. gain: finite, above zero. */
struct ggext_rope {
    const double *inv_freq;
    size_t n_pairs;
    double gain;
    enum ggext_layout layout;
    bool inverse;
};

/* n whole positions in tokens, int64 where wide, else int32. */
struct ggext_positions {
    const void *data;
    size_t n;
    bool wide;
};

/* The shape of rows, C-contiguous: one row a position; head_dim >= 2 * n_pairs. */
struct ggext_shape {
    size_t n_heads;
    size_t head_dim;
};

/* The largest difference found, and where. */
struct ggext_worst {
    double error;
    size_t row;
    size_t head;
    size_t dimension;
};

/* No position and no angle may be larger: 2^53, up to which float64 holds every whole number. */
#define GGEXT_MAX_ANGLE 9007199254740992.0

/* Returns the index of the first position for which |position| or |position * inv_freq| is above GGEXT_MAX_ANGLE for
 * some pair, or positions.n if there is none. inv_freq must be finite. */
size_t ggext_first_bad_position(struct ggext_positions positions, const double *inv_freq, size_t n_pairs);

/* Writes rows, turned, to out: both positions.n * n_heads * head_dim floats. out may be rows itself, but must not
 * overlap it otherwise. Dimensions from 2 * n_pairs on are copied. Each value is computed in float64 and rounded once,
 * so the result does not depend on the number of threads. Positions must have passed ggext_first_bad_position. */
void ggext_rotate(const struct ggext_rope *rope, struct ggext_positions positions, struct ggext_shape shape,
                  const float *rows, float *out, size_t threads);

/* Writes gain * cos and gain * sin of every angle to two arrays of positions.n * n_pairs floats; layout is not used.
 * Positions must have passed ggext_first_bad_position. */
void ggext_cos_sin(const struct ggext_rope *rope, struct ggext_positions positions, float *cos_out, float *sin_out,
                   size_t threads);

/* Returns the largest |actual - turned rows|, the turned rows in float64 and not rounded, and the first place where it
 * occurs. A difference that is not finite, NaN included, counts as INFINITY, so that no comparison overlooks it.
 * There must be at least one value. Positions must have passed ggext_first_bad_position. */
struct ggext_worst ggext_worst_error(const struct ggext_rope *rope, struct ggext_positions positions,
                                     struct ggext_shape shape, const float *rows, const float *actual, size_t threads);

#endif
