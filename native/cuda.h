/* Rotary position embedding of rows on a CUDA device; the same bits as rope.h's ggext_rotate. Nothing here knows Python. */
#ifndef GGEXT_CUDA_H
#define GGEXT_CUDA_H

#include "rope.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Returns how many CUDA devices can be used: 0 without one, without a driver, or with a driver that is too old; then
 * *reason is why, in words that live as long as the program. */
int ggext_cuda_devices(const char **reason);

/* Does what ggext_rotate does, on the current device; rows and out lie in host memory. threads is not used. Returns
 * NULL, or what went wrong, in words that live as long as the program; then the contents of out are undefined. */
const char *ggext_cuda_rotate(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows, void *out,
                              size_t threads);

/* Measures, without the host: rotates rows of zeros `repeats` times from one device array to another, after one warm-up,
 * and copies them as often, in turn. Writes seconds of the fastest rotation and of the fastest copy. Positions are those
 * of the rope; 1 <= repeats. Returns NULL, or what went wrong, as above. */
const char *ggext_cuda_measure(const struct ggext_rope *rope, struct ggext_shape shape, int repeats,
                               double *rotate_seconds, double *copy_seconds);

#ifdef __cplusplus
}
#endif

#endif
