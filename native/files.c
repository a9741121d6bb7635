/* The file tricks of files.h: a reservation, a copy through the cache, a walk over strings, a move of extents.
 *
 * Each has a branch for systems without the call, which says EOPNOTSUPP, so that the callers in ggext/gguf have one
 * path. Calls that a signal interrupted are made again. */
#if defined(__linux__)
#define _GNU_SOURCE /* fallocate */
#endif
#include "files.h"

#include <errno.h>
#include <stdlib.h>

#if defined(_WIN32)
#include <windows.h>

/* Does what POSIX's pread and pwrite do: at a place of its own, from any thread, fewer bytes than asked for included.
 * Returns how many, or -1 and errno. The descriptor is the system's handle, of which 32 bits count: Python's descriptors
 * belong to its own C library. */
static int64_t at_place(int descriptor, void *data, size_t length, int64_t at, int writes)
{
    HANDLE file = (HANDLE)(intptr_t)descriptor;
    uint64_t place = (uint64_t)at;
    OVERLAPPED where = {.Offset = (DWORD)(place & UINT32_MAX), .OffsetHigh = (DWORD)(place >> 32)};
    DWORD count = length > 1 << 30 ? 1 << 30 : (DWORD)length;
    DWORD moved = 0;
    BOOL done = writes ? WriteFile(file, data, count, &moved, &where) : ReadFile(file, data, count, &moved, &where);
    if (done || GetLastError() == ERROR_HANDLE_EOF)
        return moved;
    switch (GetLastError()) {
    case ERROR_DISK_FULL:
    case ERROR_HANDLE_DISK_FULL:
        errno = ENOSPC;
        break;
    case ERROR_INVALID_HANDLE:
        errno = EBADF;
        break;
    case ERROR_ACCESS_DENIED:
        errno = EACCES;
        break;
    default:
        errno = EIO;
    }
    return -1;
}

/* Reads up to length bytes at a place. Returns how many, 0 at the file's end, or -1 and errno. */
static int64_t read_at(int descriptor, char *data, size_t length, int64_t at)
{
    return at_place(descriptor, data, length, at, 0);
}

/* Writes up to length bytes at a place. Returns how many, or -1 and errno. */
static int64_t write_at(int descriptor, const char *data, size_t length, int64_t at)
{
    return at_place(descriptor, (void *)(uintptr_t)data, length, at, 1);
}
#else
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* As on Windows, above. */
static int64_t read_at(int descriptor, char *data, size_t length, int64_t at)
{
    return pread(descriptor, data, length, (off_t)at);
}

/* As on Windows, above. */
static int64_t write_at(int descriptor, const char *data, size_t length, int64_t at)
{
    return pwrite(descriptor, data, length, (off_t)at);
}
#endif

#if defined(__linux__)
#include <fcntl.h>
#include <linux/falloc.h>

/* Frees the blocks beyond the file's end: a reservation that fails has got some of them already. */
static void give_back(int descriptor)
{
    struct stat file;
    if (fstat(descriptor, &file) == 0 && ftruncate(descriptor, file.st_size) != 0)
        return; /* they go with the file */
}

int ggext_reserve(int descriptor, int64_t nbytes)
{
    int status;
    do
        status = fallocate(descriptor, FALLOC_FL_KEEP_SIZE, 0, (off_t)nbytes);
    while (status != 0 && errno == EINTR);
    if (status == 0)
        return 0;
    int failure = errno;
    give_back(descriptor);
    return failure == ENOSYS ? EOPNOTSUPP : failure;
}
#else
int ggext_reserve(int descriptor, int64_t nbytes)
{
    (void)descriptor;
    (void)nbytes;
    return EOPNOTSUPP;
}
#endif

enum { COPIED_AT_ONCE = 1 << 20 };

/* Writes all of it: the system may write less at once. Returns 0, or an errno. A system that writes nothing and gives no
 * reason has no room: without that the loop would not end. */
static int write_all(int target, const char *data, size_t length, int64_t at)
{
    while (length > 0) {
        int64_t written = write_at(target, data, length, at);
        if (written == 0)
            return ENOSPC;
        if (written < 0 && errno != EINTR)
            return errno;
        if (written > 0) {
            data += written;
            length -= (size_t)written;
            at += written;
        }
    }
    return 0;
}

/* Returns how many bytes to copy next, of the `rest` from target_at on: up to where the system's largest pages of the
 * cache end, which is a tenth faster than steps across them. */
static int64_t next_step(int64_t target_at, int64_t rest)
{
    int64_t step = COPIED_AT_ONCE - target_at % COPIED_AT_ONCE;
    return step < rest ? step : rest;
}

int ggext_copy(int source, int target, int64_t source_at, int64_t target_at, int64_t length, int64_t *copied)
{
    *copied = 0;
    char *buffer = malloc(COPIED_AT_ONCE);
    if (buffer == NULL)
        return ENOMEM;
    int failure = 0;
    while (failure == 0 && *copied < length) {
        const int64_t step = next_step(target_at + *copied, length - *copied);
        const int64_t n_read = read_at(source, buffer, (size_t)step, source_at + *copied);
        if (n_read == 0)
            break; /* the source ends */
        if (n_read < 0) {
            failure = errno == EINTR ? 0 : errno;
            continue;
        }
        failure = write_all(target, buffer, (size_t)n_read, target_at + *copied);
        if (failure == 0)
            *copied += n_read;
    }
    free(buffer);
    return failure;
}

/* Returns the little-endian number in 8 bytes, which may stand at any address. */
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
