#if defined(__linux__)
#define _GNU_SOURCE /* fallocate */
#endif
#include "files.h"

#include <errno.h>

#if defined(__linux__)
#include <fcntl.h>

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
