/* Loops that are compiled for several generations of processors, of which the best is chosen at run time. */
#ifndef GGEXT_VECTORS_H
#define GGEXT_VECTORS_H

#include "parallel.h"

/* Says of the next loop that its rounds are independent, also where it reads and writes one array. */
#if defined(__clang__)
#define GGEXT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define GGEXT_INDEPENDENT _Pragma("GCC ivdep")
#else
#define GGEXT_INDEPENDENT
#endif

/* A slice's function NAME is compiled as NAME_0 for every processor of the build's kind and, since a build for x86-64
 * must run on those of 2003 too, as NAME_1 for those of 2013 and NAME_2 for those of 2017. GGEXT_CHOSEN(NAME) is the best
 * that this processor has and that is allowed. */
#define GGEXT_COMPILE_ONE(name)                                                                                        \
    (void *context, size_t part, size_t begin, size_t end)                                                             \
    {                                                                                                                  \
        name(context, part, begin, end);                                                                               \
    }
/* clang-format off */ /* it would run the macro's functions into one another */
#if defined(__x86_64__) && defined(__GNUC__)
#define GGEXT_COMPILE(name)                                                                                            \
    static void name##_0 GGEXT_COMPILE_ONE(name)                                                                       \
    __attribute__((target("avx2,fma"))) static void name##_1 GGEXT_COMPILE_ONE(name)                                   \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))) static void name##_2 GGEXT_COMPILE_ONE(     \
        name)                                                                                                          \
    static const ggext_slice name##_levels[] = {name##_0, name##_1, name##_2};
/* clang-format on */
#define GGEXT_CHOSEN(name) name##_levels[ggext_vector_level()]
#else
#define GGEXT_COMPILE(name) static void name##_0 GGEXT_COMPILE_ONE(name)
#define GGEXT_CHOSEN(name) name##_0
#endif

/* Returns the level in use: 0: none but the build's own instructions; 1: AVX2 and FMA; 2: AVX-512. */
int ggext_vector_level(void);

/* Allows vector instructions up to a level, for tests and measurements; no bit of any result depends on them. Returns the
 * level in use before: at most what the processor has. */
int ggext_use_vectors(int level);

#endif
