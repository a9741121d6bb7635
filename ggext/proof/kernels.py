"""Level ``kernel``: the native rotation, and llama.cpp's own on every device, against float64.

llama.cpp's ROPE runs as a graph of one node on each device that ggml has here: with the parameters
of the live graph where that was measured, else with the file's table as frequency factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggext.proof.float32 import OTHER_DEVICES, pairs_of, turn_bound, turns
from ggext.proof.report import Check, KernelRow
from ggext.rope.encoders import frequency_factors
from ggext.rope.scaling import RopeGeometry, RopeTable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.native import Device as NativeDevice
    from ggext.runtime.ggml import RopeCall
    from ggext.runtime.ggml_devices import Device

#: float32 rounding of a rotation of values up to 1: three operations of 6e-8 each, and the gain.
KERNEL_TOLERANCE = 1e-6
#: Positions that are always reported, also beyond the context.
POSITIONS = (0, 1, 4096, 32768, 131072, 1 << 20)
NATIVE = "ggext"
#: A float32 angle is now and then right by luck, as at powers of two: the worst of so many
#: neighbours is reported.
_NEIGHBOURS = 16
#: Half a unit in the last place of a cosine in f16 and in bf16: what a cache of 16 bits rounds
#: away.
_F16 = 2.0**-11
_BF16 = 2.0**-8
#: Steps of a token by which a position may be off: a query's and a key's together come to half a
#: step.
_BLURRED = 0.25


def check_kernels(table: RopeTable, geometry: RopeGeometry) -> list[Check]:
    """The native float32 rotation against float64 on every device that it has here, at positions up
    to the target context."""
    from ggext import native

    return [
        _check_native(table, geometry, device)
        for device in native.DEVICES
        if native.available(device)
    ]


def _check_native(
    table: RopeTable, geometry: RopeGeometry, device: NativeDevice
) -> Check:
    import numpy as np

    from ggext import native

    positions = probe_positions(table.context, geometry.trained_context)
    rows = (
        np.random.default_rng(0)
        .uniform(-1, 1, (len(positions), 2, geometry.head_dim))
        .astype("<f4")
    )
    turned = native.rotate(
        rows,
        positions,
        table.inv_freq,
        table.attention_factor,
        geometry.layout,
        device=device,
    )
    before, after = (
        pairs_of(values, geometry.n_rot, geometry.layout) for values in (rows, turned)
    )
    missed = after - before * turns(positions, table)[:, None, :]
    error = (
        np.maximum(np.abs(missed.real), np.abs(missed.imag)).max(axis=(1, 2))
        / table.attention_factor
    )
    worst = int(error.argmax())
    where = "" if device == "cpu" else f" on {device}"
    return Check(
        "kernel",
        f"native rotation{where} against float64, worst |Δ| / gain",
        float(error[worst]),
        KERNEL_TOLERANCE,
        f"position {positions[worst]:,}, {len(positions)} positions to {positions[-1]:,}",
    )


def probe_positions(context: int, trained: int) -> NDArray[np.int64]:
    """Positions from 0 to the last of the context: dense at the ends and at the trained edge, log
    between."""
    import numpy as np

    spread = np.geomspace(1, max(2, context - 1), 64)
    edges = [0, 1, 2, trained - 1, trained, trained + 1, context - 2, context - 1]
    positions = np.unique(np.concatenate([spread, edges]).astype(np.int64))
    return positions[(positions >= 0) & (positions < context)]


def told_positions(context: int) -> NDArray[np.int64]:
    """The fixed list and the last position of the context."""
    import numpy as np

    return np.unique(np.array([*POSITIONS, context - 1], np.int64))


def _measured_positions(table: RopeTable, geometry: RopeGeometry) -> NDArray[np.int64]:
    """Those that are reported, those that the native rotation is checked at, and more for a
    picture: each with its neighbours before it, (n_positions, neighbours)."""
    import numpy as np

    probed = probe_positions(table.context, geometry.trained_context)
    spread = np.geomspace(1, POSITIONS[-1], 61).astype(np.int64)
    ends = np.unique(np.concatenate([told_positions(table.context), probed, spread]))
    return np.maximum(ends[:, None] - np.arange(_NEIGHBOURS)[::-1], 0)


def measure_native(table: RopeTable, geometry: RopeGeometry) -> list[KernelRow]:
    from ggext import native

    positions = _measured_positions(table, geometry)
    cos, sin = native.cos_sin(positions.ravel(), table.inv_freq, table.attention_factor)
    return _rows(NATIVE, positions, cos + 1j * sin, table, geometry, 1.0)


def check_devices(
    table: RopeTable, geometry: RopeGeometry, call: RopeCall | None
) -> tuple[list[Check], list[KernelRow]]:
    """llama.cpp's ROPE on every device. Only positions inside the context decide."""
    from ggext.runtime.ggml_devices import devices

    checks = []
    rows = []
    for device in devices():
        measured = _measure(device, table, geometry, call)
        if measured:
            rows += measured
            checks.append(_check(device, measured))
    return checks, rows


def as_factors(table: RopeTable, geometry: RopeGeometry) -> RopeCall:
    """A table as the parameters of an operation: the unscaled angles, divided pair by pair."""
    from ggext.runtime.ggml import NEOX, RopeCall

    mode = NEOX if geometry.layout == "neox" else 0
    gain = table.attention_factor
    return RopeCall(
        geometry.n_rot,
        mode,
        0,
        geometry.base,
        1.0,
        0.0,
        gain,
        32.0,
        1.0,
        frequency_factors(table, geometry),
    )


def _measure(
    device: Device, table: RopeTable, geometry: RopeGeometry, call: RopeCall | None
) -> list[KernelRow]:
    """Rows of pairs (1, 0), which the operation turns into the gain times (cos, sin)."""
    import numpy as np

    from ggext.runtime.ggml import NEOX
    from ggext.runtime.ggml_devices import rope_on

    if (
        call is None
        or (call.n_dims, call.layout) != (geometry.n_rot, geometry.layout)
        or call.mode not in (0, NEOX)
    ):
        call = as_factors(table, geometry)
    positions = _measured_positions(table, geometry)
    rows = np.zeros((positions.size, 1, geometry.head_dim), np.float32)
    step = 2 if geometry.layout == "norm" else 1
    rows[..., 0 : step * (geometry.n_rot // 2) : step] = 1.0
    turned = rope_on(device, call, rows, positions.ravel())
    if turned is None:
        return []
    turn = pairs_of(turned, geometry.n_rot, geometry.layout)[:, 0]
    name = f"llama.cpp {device.name}"
    tolerance = 1.0 if device.is_cpu else OTHER_DEVICES
    return _rows(name, positions, turn, table, geometry, tolerance)


def _rows(
    name: str,
    positions: NDArray[np.int64],
    turn: NDArray[np.complexfloating[Any, Any]],
    table: RopeTable,
    geometry: RopeGeometry,
    slack: float,
) -> list[KernelRow]:
    import numpy as np

    missed = turn - turns(positions.ravel(), table)
    errors = (
        np.maximum(np.abs(missed.real), np.abs(missed.imag)) / table.attention_factor
    )
    errors = errors.reshape(*positions.shape, -1).max(axis=1)
    bounds = turn_bound(positions[:, -1], table, geometry, slack)
    result = []
    for position, error, bound in zip(
        positions[:, -1].tolist(), errors, bounds, strict=True
    ):
        # inside the bound the largest error is reported, else the one that is most too large
        pair = int((error / bound if (error > bound).any() else error).argmax())
        meaning = _meaning(float(error[pair]), pair, table.inv_freq[pair])
        result.append(
            KernelRow(
                name,
                position,
                float(error[pair]),
                float(bound[pair]),
                pair,
                position < table.context,
                meaning,
            )
        )
    return result


def _meaning(error: float, pair: int, frequency: float) -> str:
    if error <= KERNEL_TOLERANCE:
        return "exact to float32"
    if error <= _F16:
        return "less than a 16-bit cache rounds away"
    if error <= _BF16:
        return "less than a bf16 cache rounds away"
    steps = error / frequency if frequency else 0.0
    off = (
        f"float32 angles: cos and sin of pair {pair} are off by {error:.1g}, {steps:.1g} of a "
        "token's step"
    )
    return off + (
        ": it hardly tells neighbouring tokens apart" if steps >= _BLURRED else ""
    )


def _check(device: Device, rows: list[KernelRow]) -> Check:
    inside = [row for row in rows if row.inside]
    worst = max(inside, key=lambda row: (row.error / row.bound > 1, row.error))
    why = ""
    if worst.error > worst.bound:
        why = (
            f"{device.description} turns by other angles than the file's table, or less "
            "exactly than float32 explains"
        )
    return Check(
        "kernel",
        f"llama.cpp's rotation on {device.name} against float64, worst |Δ| / gain",
        worst.error,
        worst.bound,
        f"position {worst.position:,}, pair {worst.pair}: {worst.meaning}",
        why,
    )
