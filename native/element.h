/* The types of a row's values, and their conversion from and to float64 on the CPU. Nothing here branches, so that
 * loops over it become vector instructions on any processor, one with instructions for half precision or not. */
#ifndef GGEXT_ELEMENT_H
#define GGEXT_ELEMENT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A vector loop is as fast as its slowest call: functions of loops are always inlined. */
#if defined(__GNUC__)
#define GGEXT_INLINE static inline __attribute__((always_inline))
#else
#define GGEXT_INLINE static inline
#endif

/* bfloat16 is the upper half of a float32. Both 16-bit types are stored as uint16_t. */
enum ggext_type { GGEXT_F32, GGEXT_F16, GGEXT_BF16 };

GGEXT_INLINE size_t ggext_type_size(enum ggext_type type)
{
    return type == GGEXT_F32 ? 4 : 2;
}

GGEXT_INLINE uint32_t ggext_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

GGEXT_INLINE float ggext_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Returns the value cut to float32's 24 binary digits, the last of which is set where anything was cut off: rounding
 * that once more, to 22 digits or fewer, gives what rounding the value itself gives. NaN and infinities are kept. Call it
 * with 0 or a value not below 2^-126 in size; a smaller one comes out rounded. */
GGEXT_INLINE float ggext_rounded_to_odd(double value)
{
    const uint64_t rest = 0x1fffffffu;
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits | ((bits & rest) + rest)) & ~rest;
    memcpy(&value, &bits, sizeof value);
    return (float)value;
}

/* Returns the value as float16 bits, rounded once, ties to even. Too large becomes infinity; NaN and the sign of zero
 * are kept. Comparisons are of signed integers: those are one instruction each. */
GGEXT_INLINE uint16_t ggext_f16_of_float(float value)
{
    uint32_t bits = ggext_float_bits(value);
    int32_t size = (int32_t)(bits & 0x7fffffffu);
    int32_t normal = (size + 0xfff + (size >> 13 & 1) - (112 << 23)) >> 13;
    /* In the sum the last binary digit stands for 2^-24, the smallest float16: the addition rounds. */
    int32_t small = (int32_t)ggext_float_bits(ggext_float_of_bits((uint32_t)size) + 0.5f) - 0x3f000000;
    int32_t result = size < 0x38800000 ? small : normal;
    result = result < 0x7c00 ? result : 0x7c00;
    result |= size > 0x7f800000 ? 0x0200 : 0;
    return (uint16_t)((bits >> 16 & 0x8000u) | (uint32_t)result);
}

/* As ggext_f16_of_float. */
GGEXT_INLINE uint16_t ggext_to_f16(double value)
{
    return ggext_f16_of_float(ggext_rounded_to_odd(value));
}

/* Returns the value as bfloat16 bits, rounded once, ties to even. Too large becomes infinity; NaN and the sign of zero
 * are kept. */
GGEXT_INLINE uint16_t ggext_bf16_of_float(float value)
{
    uint32_t bits = ggext_float_bits(value);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    uint32_t nan = (bits >> 16 & 0x8000u) | 0x7fc0u;
    return (uint16_t)((int32_t)(bits & 0x7fffffffu) > 0x7f800000 ? nan : rounded);
}

/* As ggext_bf16_of_float. */
GGEXT_INLINE uint16_t ggext_to_bf16(double value)
{
    /* In the sum the last binary digit stands for 2^-133, the smallest bfloat16: the addition rounds. */
    double small = (value + 0x1.8p-81) - 0x1.8p-81;
    uint32_t bits = ggext_float_bits(ggext_rounded_to_odd(fabs(value) < 0x1p-126 ? small : value));
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    rounded = (int32_t)(bits & 0x7fffffffu) > 0x7f800000 ? 0x7fc0u : rounded;
    return (uint16_t)(rounded | (ggext_float_bits((float)value) >> 16 & 0x8000u));
}

/* Returns the value of float16 bits, exactly. */
GGEXT_INLINE double ggext_of_f16(uint16_t half)
{
    int32_t size = half & 0x7fff;
    int32_t bits = (size << 13) + (112 << 23);
    bits = size < 0x0400 ? (int32_t)ggext_float_bits((float)size * 0x1p-24f) : bits;
    bits += size >= 0x7c00 ? 112 << 23 : 0;
    return (double)ggext_float_of_bits((uint32_t)bits | (uint32_t)(half & 0x8000) << 16);
}

/* Returns the value of bfloat16 bits, exactly. */
GGEXT_INLINE double ggext_of_bf16(uint16_t bits)
{
    return (double)ggext_float_of_bits((uint32_t)bits << 16);
}

/* Returns value i of an array of the type. */
GGEXT_INLINE double ggext_load(enum ggext_type type, const void *values, long long i)
{
    if (type == GGEXT_F32)
        return (double)((const float *)values)[i];
    uint16_t bits = ((const uint16_t *)values)[i];
    return type == GGEXT_F16 ? ggext_of_f16(bits) : ggext_of_bf16(bits);
}

/* Writes value i of an array of the type, rounded once. */
GGEXT_INLINE void ggext_store(enum ggext_type type, void *values, long long i, double value)
{
    if (type == GGEXT_F32)
        ((float *)values)[i] = (float)value;
    else
        ((uint16_t *)values)[i] = type == GGEXT_F16 ? ggext_to_f16(value) : ggext_to_bf16(value);
}

#endif
