/* Which vector instructions the loops of vectors.h use: what the processor has, up to what tests allow. */
#include "vectors.h"

#include <stdatomic.h>

/* Returns the highest level that this processor has; see ggext_vector_level. */
static int supported_level(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? 2
               : 1;
#else
    return 0;
#endif
}

static atomic_int allowed_level = 2;

int ggext_vector_level(void)
{
    int supported = supported_level();
    int allowed = atomic_load(&allowed_level);
    return allowed < supported ? allowed : supported;
}

int ggext_use_vectors(int level)
{
    int before = ggext_vector_level();
    atomic_store(&allowed_level, level < 0 ? 0 : level);
    return before;
}
