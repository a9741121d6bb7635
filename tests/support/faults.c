/* A disk that fails: loaded before libc, it lets calls on the files below one folder fail.

   faults_plan says which: the `at`th call that changes a file (`reads`: that reads one), with `error`
   in errno; from then on all of them (`for_good`) or that one alone. A write does half before it
   fails, as on a disk that fills up. faults_count says how many calls there were. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long at, count;
static int error_number, on_reads, to_the_end;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void faults_plan(const char *below, long at_, int error, int reads, int for_good)
{
    pthread_mutex_lock(&lock);
    snprintf(folder, sizeof folder, "%s", below);
    at = at_;
    count = 0;
    error_number = error;
    on_reads = reads;
    to_the_end = for_good;
    pthread_mutex_unlock(&lock);
}

long faults_count(void)
{
    return count;
}

/* Whether this call is to fail: 1 the first time, 2 later. */
static int fails(const char *path, int reads)
{
    int result = 0;
    if (reads != on_reads || !folder[0] || strncmp(path, folder, strlen(folder)) != 0)
        return 0;
    pthread_mutex_lock(&lock);
    count++;
    if (at && count == at)
        result = 1;
    else if (at && to_the_end && count > at)
        result = 2;
    pthread_mutex_unlock(&lock);
    return result;
}

static int descriptor_fails(int file, int reads)
{
    int saved = errno, result;
    struct stat status;
    char link[64], path[PATH_MAX];
    ssize_t length;
    if (!folder[0] || fstat(file, &status) != 0 || !S_ISREG(status.st_mode))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    result = fails(path, reads);
    errno = saved;
    return result;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = error_number; return -1; } while (0)

#define WRITES(name, arguments, half, whole)                                                       \
    ssize_t name arguments                                                                         \
    {                                                                                              \
        REAL(name);                                                                                \
        int how = descriptor_fails(file, 0);                                                       \
        if (how == 1 && to_the_end && length > 1)                                                  \
            return half;                                                                           \
        if (how)                                                                                   \
            FAIL;                                                                                  \
        return whole;                                                                              \
    }
WRITES(write, (int file, const void *data, size_t length), real(file, data, length / 2),
       real(file, data, length))
WRITES(pwrite, (int file, const void *data, size_t length, off_t to),
       real(file, data, length / 2, to), real(file, data, length, to))
WRITES(pwrite64, (int file, const void *data, size_t length, off64_t to),
       real(file, data, length / 2, to), real(file, data, length, to))

#define GUARDED(type, name, arguments, passed, reads)                                              \
    type name arguments                                                                            \
    {                                                                                              \
        REAL(name);                                                                                \
        if (descriptor_fails(file, reads))                                                         \
            FAIL;                                                                                  \
        return real passed;                                                                        \
    }
GUARDED(ssize_t, read, (int file, void *data, size_t length), (file, data, length), 1)
GUARDED(ssize_t, pread, (int file, void *data, size_t length, off_t from),
        (file, data, length, from), 1)
GUARDED(ssize_t, pread64, (int file, void *data, size_t length, off64_t from),
        (file, data, length, from), 1)
GUARDED(int, fsync, (int file), (file), 0)
GUARDED(int, fdatasync, (int file), (file), 0)
GUARDED(int, ftruncate, (int file, off_t length), (file, length), 0)
GUARDED(int, ftruncate64, (int file, off64_t length), (file, length), 0)
GUARDED(int, fallocate, (int file, int mode, off_t from, off_t length),
        (file, mode, from, length), 0)

ssize_t copy_file_range(int source, off64_t *from, int file, off64_t *to, size_t length,
                        unsigned flags)
{
    REAL(copy_file_range);
    if (descriptor_fails(source, 1) || descriptor_fails(file, 0))
        FAIL;
    return real(source, from, file, to, length, flags);
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    if (fails(to, 0))
        FAIL;
    return real(from, to);
}

static int creates(int below, const char *path, int flags)
{
    char link[64], whole[2 * PATH_MAX] = "";
    ssize_t length;
    if (!(flags & O_CREAT))
        return 0;
    if (path[0] == '/')
        return fails(path, 0);
    snprintf(link, sizeof link, "/proc/self/fd/%d", below);
    length = readlink(link, whole, PATH_MAX);
    snprintf(whole + (length > 0 ? length : 0), PATH_MAX, "/%s", path);
    return fails(whole, 0);
}

#define OPENS(name, below, arguments, passed)                                                      \
    int name arguments                                                                             \
    {                                                                                              \
        REAL(name);                                                                                \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                  \
        va_end(rest);                                                                              \
        if (creates(below, path, flags))                                                           \
            FAIL;                                                                                  \
        return real passed;                                                                        \
    }
OPENS(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENS(openat, below, (int below, const char *path, int flags, ...), (below, path, flags, mode))
OPENS(openat64, below, (int below, const char *path, int flags, ...), (below, path, flags, mode))
