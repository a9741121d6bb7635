#if defined(__linux__)
#define _GNU_SOURCE /* fallocate */
#endif
#include "files.h"

#include <errno.h>

#if defined(__linux__)
#include <fcntl.h>
#include <linux/falloc.h>

int ggext_reserve(int descriptor, long long nbytes)
{
    int status;
    do
        status = fallocate(descriptor, FALLOC_FL_KEEP_SIZE, 0, nbytes);
    while (status != 0 && errno == EINTR);
    if (status == 0)
        return 0;
    return errno == EOPNOTSUPP || errno == ENOSYS ? -1 : errno;
}
#else
int ggext_reserve(int descriptor, long long nbytes)
{
    (void)descriptor;
    (void)nbytes;
    return -1;
}
#endif

static uint64_t read_u64(const unsigned char *bytes)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
}

int64_t ggext_skip_strings(const unsigned char *data, size_t size, size_t at, uint64_t n)
{
    for (; n > 0; n--) {
        if (size - at < 8 || read_u64(data + at) > size - at - 8)
            return ~(int64_t)at;
        at += 8 + (size_t)read_u64(data + at);
    }
    return (int64_t)at;
}

int ggext_shift_range(int file, enum ggext_shift shift, int64_t offset, int64_t length)
{
#if defined(FALLOC_FL_INSERT_RANGE) && defined(FALLOC_FL_COLLAPSE_RANGE)
    int mode = shift == GGEXT_INSERT ? FALLOC_FL_INSERT_RANGE : FALLOC_FL_COLLAPSE_RANGE;
    int failed;
    do
        failed = fallocate(file, mode, (off_t)offset, (off_t)length);
    while (failed && errno == EINTR);
    return failed ? errno : 0;
#else
    (void)file, (void)shift, (void)offset, (void)length;
    return EOPNOTSUPP;
#endif
}
