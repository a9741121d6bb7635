/* What files need and Python has no call for, or none that is fast enough. Nothing here knows Python.
 *
 * Every function on an open file returns 0, or the errno of what went wrong: EOPNOTSUPP where the file system or the
 * platform cannot do it at all. errno itself is undefined after the call. Offsets and lengths are bytes, 0 or more. */
#ifndef GGEXT_FILES_H
#define GGEXT_FILES_H

#include <stddef.h>
#include <stdint.h>

/* Gives an open file nbytes (above 0) on its disk from the beginning, its size unchanged: ENOSPC where the disk has less.
 * Where the file system cannot, nothing is written in its place, as posix_fallocate does. */
int ggext_reserve(int descriptor, int64_t nbytes);

/* Copies length bytes from an offset of one open file to an offset of another, through a buffer that stays in the
 * processor's cache: faster than copy_file_range where no blocks are shared, which goes page by page. Writes the bytes
 * copied to *copied, after a failure too: fewer than length only then, and where the source ends. */
int ggext_copy(int source, int target, int64_t source_at, int64_t target_at, int64_t length, int64_t *copied);

/* Walks over n strings of a GGUF array (each a little-endian uint64 length and that many bytes) that start at data[at].
 * Returns where the last one ends, or, if one does not fit into size bytes, ~(where it starts), which is negative.
 * size is at most INT64_MAX, at is at most size. */
int64_t ggext_skip_strings(const unsigned char *data, size_t size, size_t at, uint64_t n);

/* What ggext_shift_range does to the bytes from offset on. */
enum ggext_shift { GGEXT_INSERT, GGEXT_COLLAPSE };

/* Makes room for length bytes (zeros) at an offset of an open file, or takes them out, by moving extents and no data. */
int ggext_shift_range(int file, enum ggext_shift shift, int64_t offset, int64_t length);

#endif
