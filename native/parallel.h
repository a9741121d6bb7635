/* A loop over rows, split among threads. */
#ifndef GGEXT_PARALLEL_H
#define GGEXT_PARALLEL_H

#include <stddef.h>

enum { GGEXT_MAX_THREADS = 256 };

/* Does rows [begin, end); part is the number of the slice, 0 for the first rows. Must not touch Python objects. */
typedef void (*ggext_slice)(void *context, size_t part, size_t begin, size_t end);

/* Calls `slice` on consecutive parts of [0, n_rows), at most `threads` of them, and returns when all are done.
 *
 * threads: 1 ... GGEXT_MAX_THREADS, an upper limit: no thread is given less than about 32 k of the n_rows * row_cost
 * elements of work. Parts are numbered in the order of their rows, from 0 to the returned count - 1. A thread that
 * the system refuses costs time, never the result: the caller's thread does its part. */
size_t ggext_parallel(size_t n_rows, size_t row_cost, size_t threads, ggext_slice slice, void *context);

#endif
