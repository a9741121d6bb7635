/* What files need and Python has no call for. Nothing here knows Python. */
#ifndef GGEXT_FILES_H
#define GGEXT_FILES_H

/* Gives an open file nbytes (above 0) on its disk from the beginning, its size unchanged. Returns 0, -1 where the system
 * or the file system cannot do that, or the errno of what went wrong (ENOSPC). Nothing is written in its place, as
 * posix_fallocate does. */
int ggext_reserve(int descriptor, long long nbytes);

#endif
