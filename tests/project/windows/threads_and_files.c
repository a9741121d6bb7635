/* What native/ does in Windows' own way, run by tests/test_other_systems.py where Wine is installed: threads, and
 * copying at places of files. Prints one line for each and returns how many were wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

#include "files.h"
#include "parallel.h"

enum { ROWS = 1000000, BYTES = 5000000, SOURCE_AT = 1000, TARGET_AT = 77 };

static long long sums[GGEXT_MAX_THREADS];

static void add(void *context, size_t part, size_t begin, size_t end)
{
    (void)context;
    for (size_t i = begin; i < end; i++)
        sums[part] += (long long)i;
}

static int check(const char *what, int right)
{
    printf("%s: %s\n", what, right ? "right" : "WRONG");
    return !right;
}

static int threads(void)
{
    long long total = 0;
    size_t parts = ggext_parallel(ROWS, 1, 8, add, NULL);
    for (size_t i = 0; i < parts; i++)
        total += sums[i];
    return check("parts", parts == 8) + check("sum", total == (long long)ROWS * (ROWS - 1) / 2);
}

static HANDLE made(const char *name)
{
    return CreateFileA(name, GENERIC_READ | GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, 0, NULL);
}

static int handle_of(HANDLE file)
{
    return (int)(intptr_t)file;
}

static int files(void)
{
    char *data = malloc(BYTES);
    char *back = malloc(BYTES);
    HANDLE source = made("source.bin");
    HANDLE target = made("target.bin");
    DWORD count;
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (char)(i * 2654435761u >> 13);
    WriteFile(source, data, BYTES, &count, NULL);

    long long copied = ggext_copy(handle_of(source), handle_of(target), SOURCE_AT, TARGET_AT, BYTES);
    int wrong = check("a source that ends", copied == BYTES - SOURCE_AT);
    SetFilePointer(target, TARGET_AT, NULL, FILE_BEGIN);
    ReadFile(target, back, BYTES - SOURCE_AT, &count, NULL);
    wrong += check("bytes", memcmp(back, data + SOURCE_AT, BYTES - SOURCE_AT) == 0);
    CloseHandle(target);
    wrong += check("a closed file", ggext_copy(handle_of(source), handle_of(target), 0, 0, 10) == -1);
    wrong += check("ranges", ggext_shift_range(handle_of(source), GGEXT_INSERT, 0, 4096) != 0);
    CloseHandle(source);
    free(data);
    free(back);
    return wrong;
}

int main(void)
{
    return threads() + files();
}
