/* Rotary position embedding of rows on an Apple GPU. Nothing here knows Python. */
#ifndef GGEXT_METAL_H
#define GGEXT_METAL_H

#include "rope.h"

/* Returns how many Metal devices can be used, 0 or 1; where none, *reason is why, in words that live as long as the
 * program. The first call compiles the kernels. */
int ggext_metal_devices(const char **reason);

/* Does what ggext_rotate does, on the device, with float32 in place of float64: the error is below 4e-7 of the pair's
 * length times the gain before the rounding to the type. rows and out lie in host memory; threads is not used. Returns
 * NULL, or what went wrong, in words that live as long as the program; then the contents of out are undefined. */
const char *ggext_metal_rotate(const struct ggext_rope *rope, struct ggext_shape shape, const void *rows, void *out,
                               size_t threads);

#endif
