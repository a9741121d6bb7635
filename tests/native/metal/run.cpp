/* rope.metal on a CPU: every thread of the grid that rope_metal.m starts, one after the other. */
#include "rope.metal"

extern "C" void run(int type, void *rows, const ggext_metal_rope *rope, const ulong *to, const long *to_positions,
                    const ulong *from, const long *from_positions, uint n_rows, uint n_threads)
{
    for (uint row = 0; row < n_rows; row++)
        for (uint head = 0; head < rope->n_heads; head++)
            for (uint pair = 0; pair < n_threads; pair++) {
                const uint3 at = {pair, head, row};
                if (type == 0)
                    rotate_f32((float *)rows, *rope, to, to_positions, from, from_positions, at);
                else if (type == 1)
                    rotate_f16((half *)rows, *rope, to, to_positions, from, from_positions, at);
                else
                    rotate_bf16((ushort *)rows, *rope, to, to_positions, from, from_positions, at);
            }
}
