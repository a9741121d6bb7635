/* The scalar mathematics of rotary position embedding, stated once.
 *
 * Pure functions: no pointers, no state, small structs by value, so that one text serves C and any language that
 * is close to it. The including file defines GGEXT_FN, the qualifier of every function here, beforehand:
 * `static inline` in C.
 *
 * Everything is float64, because angles grow with position: at position 1 M a float32 angle has an error of 0.03 rad
 * before anything is computed with it. Results are cast to float32 once, at the end, by the caller.
 */
#ifndef GGEXT_ROPE_MATH_H
#define GGEXT_ROPE_MATH_H

#ifndef GGEXT_FN
#error "define GGEXT_FN, the function qualifier (in C: static inline), before including rope_math.h"
#endif

/* Which two dimensions of a head make a pair: NORM is (2i, 2i + 1), NEOX is (i, i + n_pairs). */
enum ggext_layout { GGEXT_NORM, GGEXT_NEOX };

/* One rotation: the gain times cos and sin of its angle. */
struct ggext_turn {
    double cos;
    double sin;
};

/* The two values of a pair, in the order of their dimensions. */
struct ggext_pair {
    double first;
    double second;
};

/* Where the two values of a pair stand in a head: dimension indices. */
struct ggext_places {
    long long first;
    long long second;
};

/* Returns position * inv_freq (tokens * radians per token) less whole turns: radians in about [-pi, pi].
 *
 * Call it with a whole |position| <= 2^53 and |position * inv_freq| <= 2^53. Its error is below 1e-15 for all of those,
 * because the product and 2 pi are both carried in two doubles; the plain product alone loses 1e-9 at 10 M radians. */
GGEXT_FN double ggext_reduced_angle(double position, double inv_freq)
{
    const double two_pi_high = 0x1.921fb54442d18p+2;
    const double two_pi_low = 0x1.1a62633145c07p-52; /* 2 pi - two_pi_high */
    const double turns_per_radian = 0x1.45f306dc9c883p-3;
    double product = position * inv_freq;
    double product_low = fma(position, inv_freq, -product); /* exact: product + product_low is the true product */
    double turns = rint(product * turns_per_radian);
    double angle = fma(-turns, two_pi_high, product);
    return fma(-turns, two_pi_low, angle) + product_low;
}

/* Returns the rotation by +angle with the gain, or what undoes it: by -angle and 1 / gain.
 *
 * Call it with a gain that is finite and above zero; the other bounds are those of ggext_reduced_angle. */
GGEXT_FN struct ggext_turn ggext_turn_at(double position, double inv_freq, double gain, int inverse)
{
    double angle = ggext_reduced_angle(position, inv_freq);
    struct ggext_turn turn;
    turn.cos = inverse ? cos(angle) / gain : cos(angle) * gain;
    turn.sin = inverse ? -sin(angle) / gain : sin(angle) * gain;
    return turn;
}

/* Returns the pair turned: (x cos - y sin, x sin + y cos). */
GGEXT_FN struct ggext_pair ggext_turned(struct ggext_pair pair, struct ggext_turn turn)
{
    struct ggext_pair result;
    result.first = pair.first * turn.cos - pair.second * turn.sin;
    result.second = pair.first * turn.sin + pair.second * turn.cos;
    return result;
}

/* Returns the dimensions of pair i of n_pairs. Dimensions from 2 * n_pairs on are in no pair and are never turned. */
GGEXT_FN struct ggext_places ggext_places_of(enum ggext_layout layout, long long n_pairs, long long i)
{
    struct ggext_places places;
    places.first = layout == GGEXT_NORM ? 2 * i : i;
    places.second = layout == GGEXT_NORM ? 2 * i + 1 : i + n_pairs;
    return places;
}

#endif
