/* Rotary position embedding of rows on Apple's GPUs, which have no float64: angles are 64-bit fractions of a turn, and
 * cosines, sines and products float32. Compiled when it is first used, with this text's includes filled in by the build. */
#include <metal_stdlib>
using namespace metal;

#define GGEXT_FN static inline
#define GGEXT_SINGLE
#include "rope_math.h"
#include "rope_metal.h"

/* Returns a value of a row as float32, exactly. */
static inline float load(float value) { return value; }
static inline float load(half value) { return float(value); }
/* Writes a value, rounded once to the type of the row. */
static inline void store(device float *place, float value) { *place = value; }
static inline void store(device half *place, float value) { *place = half(value); }

/* bfloat16 is the upper half of a float32; rounded to nearest, ties to even. */
static inline float load(ushort bits) { return as_type<float>(uint(bits) << 16); }
static inline void store(device ushort *place, float value)
{
    uint bits = as_type<uint>(value);
    *place = isnan(value) ? ushort(0x7fc0) : ushort((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* A thread turns one pair: at.x is the pair, at.y the head, at.z the row. */
template <typename T>
static inline void turn_pair(device T *rows, struct ggext_metal_rope rope, ulong fraction, uint3 at)
{
    if (at.x >= rope.n_pairs)
        return;
    device T *head = rows + (ulong(at.z) * rope.n_heads + at.y) * rope.head_dim;
    struct ggext_places places = ggext_places_of((enum ggext_layout)rope.layout, rope.n_pairs, at.x);
    struct ggext_pair pair = {load(head[places.first]), load(head[places.second])};
    pair = ggext_turned(pair, ggext_turn_of_fraction(fraction, rope.gain));
    store(head + places.first, pair.first);
    store(head + places.second, pair.second);
}

#define ROTATE(name, type)                                                                                             \
    kernel void name(device type *rows [[buffer(GGEXT_METAL_ROWS)]],                                                   \
                     constant struct ggext_metal_rope &rope [[buffer(GGEXT_METAL_ROPE)]],                              \
                     device const ulong *to [[buffer(GGEXT_METAL_TO_FRACTIONS)]],                                      \
                     device const long *to_positions [[buffer(GGEXT_METAL_TO_POSITIONS)]],                             \
                     device const ulong *from [[buffer(GGEXT_METAL_FROM_FRACTIONS)]],                                  \
                     device const long *from_positions [[buffer(GGEXT_METAL_FROM_POSITIONS)]],                         \
                     uint3 at [[thread_position_in_grid]])                                                             \
    {                                                                                                                  \
        ulong fraction = ulong(to_positions[at.z]) * to[at.x] - ulong(from_positions[at.z]) * from[at.x];              \
        turn_pair(rows, rope, fraction, at);                                                                           \
    }

ROTATE(rotate_f32, float)
ROTATE(rotate_f16, half)
ROTATE(rotate_bf16, ushort)
