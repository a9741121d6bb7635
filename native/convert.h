/* Values from one type to another on the CPU. Nothing here knows Python. */
#ifndef GGEXT_CONVERT_H
#define GGEXT_CONVERT_H

#include <stddef.h>

#include "element.h"

/* What values are converted to: one of enum ggext_type, or blocks of 32 values as ggml stores Q8_0: the float16 scale d,
 * then 32 signed bytes q; each value is d * q. */
enum { GGEXT_Q8_0 = GGEXT_BF16 + 1, GGEXT_Q8_0_VALUES = 32, GGEXT_Q8_0_BYTES = 2 + GGEXT_Q8_0_VALUES };

/* Writes n values to out as `to`, and returns the place of the first value that `to` cannot hold, or n. Those are: a
 * finite value that float16 or bfloat16 rounds to infinity; in Q8_0 NaN, infinity, and the largest value of a block
 * whose scale float16 cannot hold. What is written is then of no use.
 *
 * Each value is rounded once, ties to even; NaN and infinity are kept. Q8_0 is as ggml's quantize_row_q8_0_ref makes it:
 * d = largest / 127 and q = value * (1 / d) in float32, q rounded half away from zero; n must be a multiple of 32 and
 * out holds n / 32 * GGEXT_Q8_0_BYTES. out must not overlap values. One thread; the result depends on no processor. */
size_t ggext_convert(enum ggext_type from, const void *values, int to, void *out, size_t n);

#endif
