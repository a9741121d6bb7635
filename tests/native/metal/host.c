/* What the host computes for the device, in float64. */
#include <math.h>

#define GGEXT_FN static inline
#include "rope_math.h"

unsigned long long fraction_of_turn(double inv_freq)
{
    return ggext_fraction_of_turn(inv_freq);
}
