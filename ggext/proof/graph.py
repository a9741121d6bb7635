"""Level ``graph``: every ROPE operation that llama.cpp executes on real tokens, against the wanted table.

It looks at what goes into each operation and what comes out, not at what the file says, so a file that is
executed otherwise than asked fails here whatever the reason, and quantized weights make no difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggext.errors import ModelError
from ggext.gguf.reader import GgufFile
from ggext.proof.float32 import OTHER_DEVICES, frequency_bound, pairs_of, turn_bound, turns
from ggext.proof.reasons import frequency_reason, gain_reason
from ggext.proof.report import Check, Wanted
from ggext.reference import sample_tokens
from ggext.rope.compare import EXACT_GAIN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.ggml import RopeCall, RopeNode
    from ggext.runtime.model import Model

_FIRST, _EDGE = 64, 16  # tokens decoded at the start, and at each far place
_CELLS = 256
#: Noise of an angle that is read from float32 rows, in radians.
_READING = 5e-7


@dataclass(frozen=True)
class Turn:
    """What one node did to one span of positions. ``turn``: complex (n_positions, n_pairs), by what each
    pair was multiplied; ``error``: |executed - wanted| / gain of the same shape."""

    node: str
    call: RopeCall
    positions: NDArray[np.int64]
    turn: NDArray[np.complex128]
    error: NDArray[np.float64]


@dataclass(frozen=True)
class Executed:
    """What one node did at all positions: ``inv_freq`` in radians per token and ``gain``, (n_pairs,)."""

    node: str
    call: RopeCall
    inv_freq: NDArray[np.float64]
    gain: NDArray[np.float64]
    reach: int


def spans(context: int, trained: int) -> list[range]:
    """Positions to decode: the first, those around the trained edge, the last of the context."""
    found = [range(min(_FIRST, context))]
    for end in (trained + _EDGE // 2, context):
        if found[-1].stop <= end - _EDGE and end <= context:
            found.append(range(end - _EDGE, end))
    return found


def observe(model: Model, wanted: Wanted, context: int) -> list[Turn]:
    """Decodes tokens of the embedded document at those positions and reads every ROPE node.

    Raises ModelError where llama.cpp refuses, or executes no ROPE at all.
    """
    from ggext.runtime.probe import Probe

    found: list[Turn] = []
    tokens = sample_tokens(model, _FIRST)
    with Probe(model, _CELLS, lambda node: found.append(_turn(node, wanted))) as probe:
        for span in spans(context, wanted.geometry.trained_context):
            probe.clear()
            probe.decode(tokens[: len(span)], span.start)
    if not found:
        raise ModelError(f"{model.path}: llama.cpp executed no ROPE operation that could be compared")
    return found


def _turn(node: RopeNode, wanted: Wanted) -> Turn:
    import numpy as np

    geometry, table = wanted.geometry, wanted.kernel_table
    target = turns(node.positions, table)
    if node.before.shape[-1] < geometry.n_rot:
        return Turn(node.name, node.call, node.positions, np.full_like(target, np.nan), np.full(target.shape, np.inf))
    before, after = (pairs_of(rows, geometry.n_rot, geometry.layout) for rows in (node.before, node.after))
    energy = np.sum(np.abs(before) ** 2, axis=1)
    energy[energy == 0] = np.nan  # nothing went in, nothing can be said
    turn = np.sum(np.conj(before) * after, axis=1) / energy
    missed = np.sum(np.abs(after - target[:, None, :] * before) ** 2, axis=1)
    error = np.sqrt(missed / energy) / table.attention_factor
    rest = np.abs(node.after - node.before)[..., geometry.n_rot :]
    if rest.size and rest.max() > 0:  # dimensions that must stay as they are
        error[:] = np.inf
    return Turn(node.name, node.call, node.positions, turn, error)


def executed_by_node(found: list[Turn], wanted: Wanted) -> list[Executed]:
    """Frequencies and gains of each node, fitted to all positions at which it was seen."""
    names = list(dict.fromkeys(turn.node for turn in found))
    return [_fit([turn for turn in found if turn.node == name], wanted) for name in names]


def _fit(seen: list[Turn], wanted: Wanted) -> Executed:
    """The slope of the angle over the first positions, made precise at the far ones as long as the
    number of whole turns until there is certain."""
    import numpy as np

    first, *far = seen
    places = first.positions.astype(np.float64)[:, None]
    angles = np.unwrap(np.angle(first.turn), axis=0)
    angles -= 2 * np.pi * np.round(angles[:1] / (2 * np.pi))
    inv_freq = np.sum(places * angles, axis=0) / max(1.0, float(np.sum(places**2)))
    unsure = frequency_bound(wanted.kernel_table, wanted.geometry) + _READING / max(1.0, float(places[-1, 0]))
    reach = int(places[-1, 0])
    for turn in far:
        places = turn.positions.astype(np.float64)[:, None]
        left = np.angle(np.nanmean(turn.turn * np.exp(-1j * places * inv_freq), axis=0))
        certain = unsure * places[-1, 0] < 1.0
        inv_freq = np.where(certain, inv_freq + left / places.mean(), inv_freq)
        reach = int(places[-1, 0]) if certain.all() else reach
    gains = np.sqrt(np.nanmean(np.abs(np.concatenate([turn.turn for turn in seen])) ** 2, axis=0))
    return Executed(first.node, first.call, inv_freq, gains, reach)


def check_graph(gguf: GgufFile, wanted: Wanted, found: list[Turn], nodes: list[Executed], gpu: bool) -> list[Check]:
    slack = OTHER_DEVICES if gpu else 1.0
    checks = [
        _check_frequency(gguf, wanted, nodes, slack),
        _check_gain(gguf, wanted, nodes, slack),
    ]
    return [_check_rotation(wanted, found, nodes, slack, told=not all(c.passed for c in checks)), *checks]


def _check_rotation(wanted: Wanted, found: list[Turn], nodes: list[Executed], slack: float, told: bool) -> Check:
    import numpy as np

    def excess(turn: Turn) -> NDArray[np.float64]:
        bound = turn_bound(turn.positions, wanted.kernel_table, wanted.geometry, slack)
        result: NDArray[np.float64] = np.nan_to_num(turn.error / bound, nan=0.0, posinf=np.inf)
        return result

    worst = max(found, key=lambda turn: float(excess(turn).max()))
    row, pair = np.unravel_index(int(excess(worst).argmax()), worst.error.shape)
    bound = turn_bound(worst.positions, wanted.kernel_table, wanted.geometry, slack)[row, pair]
    where = f"{worst.node}, position {worst.positions[row]:,}, {_pair(wanted, int(pair))}"
    unsaid = not told and not worst.error[row, pair] <= bound
    why = f"the operation is {worst.call}, which is no rotation by the wanted table" if unsaid else ""
    last = max(int(turn.positions[-1]) for turn in found)
    return Check(
        "graph", f"{len(nodes)} ROPE nodes, worst |Δ| / gain", float(worst.error[row, pair]), float(bound),
        f"{where}; positions to {last:,}", why,
    )  # fmt: skip


def _check_frequency(gguf: GgufFile, wanted: Wanted, nodes: list[Executed], slack: float) -> Check:
    import numpy as np

    table = wanted.kernel_table
    target = np.asarray(table.inv_freq)
    bound = frequency_bound(table, wanted.geometry) * slack
    scale = np.where(target == 0, 1.0, target)

    def excess(node: Executed) -> NDArray[np.float64]:
        off = np.abs(node.inv_freq - target) / (bound + _READING / max(1, node.reach))
        result: NDArray[np.float64] = np.nan_to_num(off, nan=0.0)
        return result

    worst = max(nodes, key=lambda node: float(excess(node).max()))
    pair = int(excess(worst).argmax())
    value, tolerance = abs(worst.inv_freq - target)[pair], (bound[pair] + _READING / max(1, worst.reach))
    off = int((excess(worst) > 1).sum())
    detail = f"{worst.node}, {_pair(wanted, pair)}"
    why = ""
    if off:
        ratio = worst.inv_freq[pair] / scale[pair]
        detail += f": {target[pair]:.4g} rad a token wanted, {worst.inv_freq[pair]:.4g} executed (×{ratio:.4g})"
        detail += f"; {off} of {len(target)} pairs are off"
        why = frequency_reason(gguf, wanted, worst.call)
    return Check(
        "graph", "frequency executed, relative error", float(value / scale[pair]), float(tolerance / scale[pair]),
        detail, why,
    )  # fmt: skip


def _check_gain(gguf: GgufFile, wanted: Wanted, nodes: list[Executed], slack: float) -> Check:
    import numpy as np

    target = wanted.kernel_table.attention_factor

    def error(node: Executed) -> NDArray[np.float64]:
        off: NDArray[np.float64] = np.nan_to_num(np.abs(node.gain / target - 1), nan=0.0)
        return off

    worst = max(nodes, key=lambda node: float(error(node).max()))
    pair = int(error(worst).argmax())
    value, gain = float(error(worst)[pair]), float(worst.gain[pair])
    detail = f"{worst.node}: wanted {target:.7g}, executed {gain:.7g}"
    why = gain_reason(gguf, target, gain, worst.call) if value > EXACT_GAIN * slack else ""
    return Check("graph", "gain executed, relative error", value, EXACT_GAIN * slack, detail, why)


def _pair(wanted: Wanted, pair: int) -> str:
    """A pair in the user's terms: ``pair 7 of 16 (dimensions 14 and 15, wavelength 338 tokens)``."""
    geometry = wanted.geometry
    pairs = geometry.n_rot // 2
    first, second = (2 * pair, 2 * pair + 1) if geometry.layout == "norm" else (pair, pair + pairs)
    length = wanted.table.wavelengths[pair]
    tokens = "never turns" if math.isinf(length) else f"wavelength {length:,.4g} tokens"
    return f"pair {pair} of {pairs} (dimensions {first} and {second}, {tokens})"
