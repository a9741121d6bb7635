"""How wrong llama.cpp's angles may be: it computes them in float32.

A float32 operation is off by up to 2^-24 of its result. ggml's CPU kernel starts with the position
and multiplies it by base^(-2/d) once a pair, so up to pair i it rounds i times, and carries the
rounding of that factor i times; the factor itself is off by its exponent's rounding, which adds |ln
θᵢ| until pair i. Then come the frequency factor, the scale and YaRN's mix of two angles, whose ramp
is rounded on the scale of the unscaled angle. Together, with ω the wanted and θ the unscaled
frequency:

    |Δ angle| ≤ position · 2^-24 · (ω · (2i + |ln θ| + 6) + 2θ)

The factor of ``OTHER_DEVICES`` is for GPUs, whose kernels use a fast sine, cosine and power
function.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggext.rope import methods
from ggext.rope.scaling import RopeGeometry, RopeTable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNIT = 2.0**-24
#: Rounding of cos, sin, the gain and the products, in values up to 1.
FLOOR = 1e-6
OTHER_DEVICES = 8.0


def frequency_bound(table: RopeTable, geometry: RopeGeometry) -> NDArray[np.float64]:
    """Radians per token that float32 explains, (n_pairs,)."""
    import numpy as np

    inv_freq = np.asarray(table.inv_freq)
    unscaled = np.asarray(methods.theta(replace(geometry, turning=None)))
    operations = 2 * np.arange(len(inv_freq)) + np.abs(np.log(unscaled)) + 6
    bound: NDArray[np.float64] = UNIT * (inv_freq * operations + 2 * unscaled)
    return bound


def turn_bound(
    positions: NDArray[Any],
    table: RopeTable,
    geometry: RopeGeometry,
    slack: float = 1.0,
) -> NDArray[np.float64]:
    """|Δ| of cos and sin, divided by the gain, that float32 explains, (n_positions, n_pairs)."""
    import numpy as np

    angles = np.abs(positions.astype(np.float64))[:, None] * frequency_bound(
        table, geometry
    )
    bound: NDArray[np.float64] = np.minimum(slack * angles, 2.0) + FLOOR
    return bound


def turns(positions: NDArray[Any], table: RopeTable) -> NDArray[np.complex128]:
    """cos + i sin of every angle times the gain, in float64, (n_positions, n_pairs)."""
    import numpy as np

    angles = positions.astype(np.float64)[:, None] * np.asarray(table.inv_freq)
    result: NDArray[np.complex128] = table.attention_factor * np.exp(1j * angles)
    return result


def pairs_of(rows: NDArray[Any], n_rot: int, layout: str) -> NDArray[np.complex128]:
    """Each rotated pair (x, y) of the last axis as x + iy, (…, n_rot / 2)."""
    import numpy as np

    half = n_rot // 2
    wide = rows.astype(np.float64)
    if layout == "norm":
        first = wide[..., 0:n_rot:2]
        second = wide[..., 1:n_rot:2]
    else:
        first = wide[..., :half]
        second = wide[..., half:n_rot]
    result: NDArray[np.complex128] = first + 1j * second
    return result
