/* The scalar mathematics of rotary position embedding, stated once.
 *
 * Pure functions: no pointers, no state, small structs by value, so that one text serves C, CUDA and Metal. The including
 * file defines GGEXT_FN, the qualifier of every function here, beforehand: `static inline` in C, `__device__` in CUDA. It
 * must be compiled without fast math and without contraction of a * b + c: then every operation here is exact or rounded
 * once as IEEE 754 says, and all processors give the same bits.
 *
 * Everything is float64, because angles grow with position: at position 1 M a float32 angle has an error of 0.03 rad
 * before anything is computed with it. Results are rounded to the type of the rows once, at the end, by the caller.
 * There is no branch and no call but fma and rint, so that loops over these functions become vector instructions.
 *
 * A processor without float64, Apple's, defines GGEXT_SINGLE: reals are float32, and angles are whole numbers, 2^-64 of a
 * turn each, which lose nothing as positions grow; see ggext_turn_of_fraction.
 */
#ifndef GGEXT_ROPE_MATH_H
#define GGEXT_ROPE_MATH_H

#ifndef GGEXT_FN
#error "define GGEXT_FN, the function qualifier (in C: static inline), before including rope_math.h"
#endif

#ifdef GGEXT_SINGLE
typedef float ggext_real;
typedef long ggext_int64; /* Metal has no long long, and its long has 64 bits */
#else
typedef double ggext_real;
typedef long long ggext_int64;
#endif

/* Which two dimensions of a head make a pair: NORM is (2i, 2i + 1), NEOX is (i, i + n_pairs). */
enum ggext_layout { GGEXT_NORM, GGEXT_NEOX };

/* One rotation: the gain times cos and sin of its angle. */
struct ggext_turn {
    ggext_real cos;
    ggext_real sin;
};

/* The two values of a pair, in the order of their dimensions. */
struct ggext_pair {
    ggext_real first;
    ggext_real second;
};

/* Where the two values of a pair stand in a head: dimension indices. */
struct ggext_places {
    ggext_int64 first;
    ggext_int64 second;
};

/* Returns the rotation by `quarters` (a whole number, 2^53 at most in size) quarter turns and the rest, radians.
 *
 * Call it with |rest| <= pi / 4 and a finite gain above zero. The rest goes into the Taylor series, whose first term left
 * out is below 2e-18. */
GGEXT_FN struct ggext_turn ggext_turn_of(ggext_real quarters, ggext_real rest, ggext_real gain)
{
    ggext_real z = rest * rest;

    ggext_real s = 1.0 / 355687428096000.0; /* 1 / 17! */
    s = s * z - 1.0 / 1307674368000.0;
    s = s * z + 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = rest + rest * (z * s);

    ggext_real c = 1.0 / 20922789888000.0; /* 1 / 16! */
    c = c * z - 1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    ggext_real half_z = 0.5 * z;
    ggext_real one = 1.0 - half_z;
    c = one + (((1.0 - one) - half_z) + z * z * c); /* the rounding of 1 - half_z is put back */

    /* -2 ... 2; 2 and -2 are the same half turn. */
    ggext_real phase = quarters - 4.0 * rint(quarters * 0.25);
    ggext_real size = phase < 0.0 ? -phase : phase;
    struct ggext_turn turn;
    turn.cos = size == 1.0 ? s : c;
    turn.sin = size == 1.0 ? c : s;
    turn.cos *= phase == 1.0 || size == 2.0 ? -gain : gain;
    turn.sin *= phase == -1.0 || size == 2.0 ? -gain : gain;
    return turn;
}

#ifndef GGEXT_SINGLE

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

/* Returns the rotation by the angle with the gain.
 *
 * Call it with an |angle| <= 10 rad, such as a reduced angle or the difference of two, and a finite gain above zero.
 * The error is below 2e-16 * gain. */
GGEXT_FN struct ggext_turn ggext_turn_by(double angle, double gain)
{
    const double quarter_high = 0x1.921fb544p+0; /* pi / 2 in 33 bits: times a small whole number it is exact */
    const double quarter_low = 0x1.0b4611a626331p-34;
    double quarters = rint(angle * 0x1.45f306dc9c883p-1);
    double rest = (angle - quarters * quarter_high) - quarters * quarter_low;
    return ggext_turn_of(quarters, rest, gain);
}

/* Returns what part of a turn a token is, as a whole number of 2^-64 turns, for ggext_turn_of_fraction: right to 1 of
 * them. Call it with an |inv_freq| <= 2^53 radians per token. */
GGEXT_FN unsigned long long ggext_fraction_of_turn(double inv_freq)
{
    const double turns_per_radian_high = 0x1.45f306dc9c883p-3;
    const double turns_per_radian_low = -0x1.6b01ec5417056p-57; /* 1 / (2 pi) - turns_per_radian_high */
    double turns = inv_freq * turns_per_radian_high;
    double low = fma(inv_freq, turns_per_radian_high, -turns) + inv_freq * turns_per_radian_low;
    double part = rint((turns - rint(turns)) * 0x1p+64); /* -2^63 ... 2^63 */
    part = part >= 0x1p+63 ? -0x1p+63 : part;            /* half a turn either way */
    double low_part = rint((low - rint(low)) * 0x1p+64);
    low_part = low_part >= 0x1p+63 ? -0x1p+63 : low_part;
    return (unsigned long long)(long long)part + (unsigned long long)(long long)low_part;
}

#else

/* Returns the rotation by a fraction of a turn, in 2^-64 turns, with the gain.
 *
 * A position times what ggext_fraction_of_turn says of a token is such a fraction: what exceeds 64 bits is whole turns,
 * so that the product of any position, negative ones too, is right to 2^-64 turns times the position (2^31: 4e-10 rad).
 * The difference of two is the fraction between them. The error is below 2e-7 * gain, that of float32 itself. */
GGEXT_FN struct ggext_turn ggext_turn_of_fraction(unsigned long fraction, ggext_real gain)
{
    const ggext_real radians = 0x1.921fb6p-62f; /* 2 pi / 2^64 */
    unsigned long quarters = (fraction + (1ul << 61)) >> 62;
    long rest = (long)(fraction - (quarters << 62));
    return ggext_turn_of((ggext_real)quarters, (ggext_real)rest * radians, gain);
}

#endif

/* Returns the pair turned: (x cos - y sin, x sin + y cos). */
GGEXT_FN struct ggext_pair ggext_turned(struct ggext_pair pair, struct ggext_turn turn)
{
    struct ggext_pair result;
    result.first = pair.first * turn.cos - pair.second * turn.sin;
    result.second = pair.first * turn.sin + pair.second * turn.cos;
    return result;
}

/* Returns the dimensions of pair i of n_pairs. Dimensions from 2 * n_pairs on are in no pair and are never turned. */
GGEXT_FN struct ggext_places ggext_places_of(enum ggext_layout layout, ggext_int64 n_pairs, ggext_int64 i)
{
    struct ggext_places places;
    places.first = layout == GGEXT_NORM ? 2 * i : i;
    places.second = layout == GGEXT_NORM ? 2 * i + 1 : i + n_pairs;
    return places;
}

#endif
