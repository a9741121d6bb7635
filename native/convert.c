/* Values from one type to another, as loops that compilers turn into vector instructions.
 *
 * One function per kind of result, inlined with constant types into convert_values, which is compiled for each level of
 * vectors.h. Losses (a finite value that becomes infinite) are looked for once a stretch, not once a value: a loop with a
 * way out in its middle stays scalar. */
#include "convert.h"

#include <stdbool.h>

#include "vectors.h"

/* Values between two looks at whether one was lost: half of them in float32 fit a first-level cache. */
enum { STRETCH = 4096 };

/* One conversion, and its answer: the place of the first value that was lost, or n. */
struct convert_task {
    enum ggext_type from;
    const void *values;
    int to;
    char *out;
    size_t first_lost;
};

/* Returns value i as float32: exact, since every type here is a part of float32. */
GGEXT_INLINE float load_float(enum ggext_type type, const void *values, size_t i)
{
    return (float)ggext_load(type, values, (long long)i);
}

/* Returns the bits of a value in GGEXT_F16 or GGEXT_BF16, rounded once. */
GGEXT_INLINE uint16_t to_16_bits(int to, float value)
{
    return to == GGEXT_F16 ? ggext_f16_of_float(value) : ggext_bf16_of_float(value);
}

/* Returns whether the bits of a 16-bit type are infinity, where the value was finite. */
GGEXT_INLINE bool is_lost(int to, float value, uint16_t bits)
{
    const uint16_t infinity = to == GGEXT_F16 ? 0x7c00 : 0x7f80;
    return ((bits & 0x7fff) == infinity) & ((int32_t)(ggext_float_bits(value) & 0x7fffffffu) < 0x7f800000);
}

/* Converts values [begin, end) to a 16-bit type; returns the place of the first that is lost, or end. */
GGEXT_INLINE size_t convert_16_bits(const struct convert_task *task, enum ggext_type from, int to, size_t begin,
                                    size_t end)
{
    uint16_t *out = (uint16_t *)(void *)task->out;
    for (size_t start = begin; start < end; start += STRETCH) {
        const size_t stop = end - start < STRETCH ? end : start + STRETCH;
        int32_t any_lost = 0;
        GGEXT_INDEPENDENT
        for (size_t i = start; i < stop; i++) {
            const float value = load_float(from, task->values, i);
            out[i] = to_16_bits(to, value);
            any_lost |= is_lost(to, value, out[i]);
        }
        if (any_lost)
            for (size_t i = start; i < stop; i++)
                if (is_lost(to, load_float(from, task->values, i), out[i]))
                    return i;
    }
    return end;
}

/* Converts values [begin, end) to float32; returns end, since none can be lost. */
GGEXT_INLINE size_t convert_to_float(const struct convert_task *task, enum ggext_type from, size_t begin, size_t end)
{
    float *out = (float *)(void *)task->out;
    GGEXT_INDEPENDENT
    for (size_t i = begin; i < end; i++)
        out[i] = load_float(from, task->values, i);
    return end;
}

/* Makes one block of Q8_0 from 32 values; returns whether its scale is a float16. */
GGEXT_INLINE bool convert_block(enum ggext_type from, const void *values, size_t first, char *out)
{
    float block[GGEXT_Q8_0_VALUES];
    int8_t quants[GGEXT_Q8_0_VALUES];
    int32_t largest_bits = 0;
    for (size_t i = 0; i < GGEXT_Q8_0_VALUES; i++) {
        block[i] = load_float(from, values, first + i);
        const int32_t size = (int32_t)(ggext_float_bits(block[i]) & 0x7fffffffu);
        largest_bits = size > largest_bits ? size : largest_bits;
    }
    const float scale = ggext_float_of_bits((uint32_t)largest_bits) / 127.0f;
    const float inverse = 1.0f / scale;
    /* A scale so small that its inverse is infinite, or zero, is 0 as a float16: so are the values. */
    const float factor = isfinite(inverse) ? inverse : 0.0f;
    const uint16_t half = ggext_f16_of_float(scale);
    if (largest_bits >= 0x7f800000 || half == 0x7c00)
        return false;
    for (size_t i = 0; i < GGEXT_Q8_0_VALUES; i++) {
        const float value = block[i] * factor;
        /* The float32 before 0.5: adding 0.5 itself would round 0.49999997 up. */
        quants[i] = (int8_t)(int32_t)(value + copysignf(0x1.fffffep-2f, value));
    }
    memcpy(out, &half, sizeof half);
    memcpy(out + sizeof half, quants, sizeof quants);
    return true;
}

/* Returns the place of the value that makes a block impossible: NaN or the largest one. */
GGEXT_INLINE size_t largest_of_block(enum ggext_type from, const void *values, size_t first)
{
    size_t place = first;
    int32_t largest = -1;
    for (size_t i = first; i < first + GGEXT_Q8_0_VALUES; i++) {
        const int32_t size = (int32_t)(ggext_float_bits(load_float(from, values, i)) & 0x7fffffffu);
        place = size > largest ? i : place;
        largest = size > largest ? size : largest;
    }
    return place;
}

/* Converts values [begin, end), whole blocks, to Q8_0; returns the place of the first that makes a block impossible, or
 * end. */
GGEXT_INLINE size_t convert_blocks(const struct convert_task *task, enum ggext_type from, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i += GGEXT_Q8_0_VALUES)
        if (!convert_block(from, task->values, i, task->out + i / GGEXT_Q8_0_VALUES * GGEXT_Q8_0_BYTES))
            return largest_of_block(from, task->values, i);
    return end;
}

/* Converts values [begin, end) from a type; returns as the functions above. Both types are constants at each call, so
 * that the loops become vector instructions. */
GGEXT_INLINE size_t convert_from(const struct convert_task *task, enum ggext_type from, size_t begin, size_t end)
{
    switch (task->to) {
    case GGEXT_F32:
        return convert_to_float(task, from, begin, end);
    case GGEXT_F16:
        return convert_16_bits(task, from, GGEXT_F16, begin, end);
    case GGEXT_BF16:
        return convert_16_bits(task, from, GGEXT_BF16, begin, end);
    default:
        return convert_blocks(task, from, begin, end);
    }
}

/* A ggext_slice: converts values [begin, end) of a convert_task and writes its answer. */
GGEXT_INLINE void convert_values(void *context, size_t part, size_t begin, size_t end)
{
    (void)part;
    struct convert_task *task = context;
    switch (task->from) {
    case GGEXT_F32:
        task->first_lost = convert_from(task, GGEXT_F32, begin, end);
        break;
    case GGEXT_F16:
        task->first_lost = convert_from(task, GGEXT_F16, begin, end);
        break;
    case GGEXT_BF16:
        task->first_lost = convert_from(task, GGEXT_BF16, begin, end);
        break;
    }
}

GGEXT_COMPILE(convert_values)

size_t ggext_convert(enum ggext_type from, const void *values, int to, void *out, size_t n)
{
    struct convert_task task = {from, values, to, out, n};
    GGEXT_CHOSEN(convert_values)(&task, 0, 0, n);
    return task.first_lost;
}
