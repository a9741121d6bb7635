"""Level ``graph``: every ROPE operation that llama.cpp executes on real tokens, against the wanted
table.

It looks at what goes into each operation and what comes out, not at what the file says, so a file
that is executed otherwise than asked fails here whatever the reason, and quantized weights make no
difference.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.gguf.reader import GgufFile
from ggext.llama_cpp_facts.compressed import COMPRESSED
from ggext.llama_cpp_facts.node_names import layer_of_node
from ggext.proof.float32 import (
    OTHER_DEVICES,
    frequency_bound,
    pairs_of,
    turn_bound,
    turns,
)
from ggext.proof.reasons import frequency_reason, gain_reason
from ggext.proof.reference import sample_tokens
from ggext.proof.report import Check, Expected, NodeRow
from ggext.rope.compare import EXACT_GAIN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.ggml import RopeCall
    from ggext.runtime.model import Model
    from ggext.runtime.rope_watcher import RopeNode

_FIRST, _EDGE = 64, 16  # tokens decoded at the start, and at each far place
#: Cells where a token's place in the cache goes by its position, so that none lies beyond them.
_MOST_CELLS = 4096
#: Noise of an angle that is read from float32 rows, in radians.
_READING = 5e-7


@dataclass(frozen=True)
class Turn:
    """What one node did to one span of positions."""

    node: str
    # Of its layer.
    expected: Expected
    call: RopeCall
    positions: NDArray[np.int64]
    # (n_positions, n_pairs): by what each pair was multiplied.
    turn: NDArray[np.complex128]
    # |executed - expected| / gain, of the same shape.
    error: NDArray[np.float64]


@dataclass(frozen=True)
class Executed:
    """What one node did at all positions: ``inv_freq`` in radians per token and ``gain``,
    (n_pairs,)."""

    node: str
    expected: Expected
    call: RopeCall
    inv_freq: NDArray[np.float64]
    gain: NDArray[np.float64]
    reach: int


def spans(context: int, trained: int) -> list[range]:
    """Positions to decode: the first, those around the trained edge, the last of the context."""
    turns = [range(min(_FIRST, context))]
    for end in (trained + _EDGE // 2, context):
        if turns[-1].stop <= end - _EDGE and end <= context:
            turns.append(range(end - _EDGE, end))
    return turns


def observe(model: Model, expected: Expected, context: int) -> list[Turn]:
    """Decodes tokens of the embedded document at those positions and reads every ROPE node.

    Raises ModelError where llama.cpp refuses, or executes no ROPE at all.
    """
    from ggext.runtime.probe import CELLS, Probe

    turns: list[Turn] = []
    tokens = sample_tokens(model, _FIRST)
    # LongRoPE's table goes by the cells that a context has
    shortest = expected.table.lengths[0] if expected.table.lengths else 0
    cells = max(CELLS, shortest)
    if model.architecture in COMPRESSED:
        cells = context = min(context, _MOST_CELLS)
    with Probe(
        model,
        cells,
        lambda node: turns.append(_turn(node, expected.of_node(node.name))),
    ) as probe:
        for span in spans(context, expected.geometry.trained_context):
            probe.clear()
            probe.decode(tokens[: len(span)], span.start)
    if all(math.isnan(value) for turn in turns for value in turn.error.flat):
        raise ModelError(
            f"{model.path}: llama.cpp executed no ROPE operation, or only on zeros"
        )
    return turns


def _turn(node: RopeNode, expected: Expected) -> Turn:
    import numpy as np

    geometry = expected.geometry
    table = expected.kernel_table
    target = turns(node.positions, table)
    finite = np.isfinite(node.before).all() and np.isfinite(node.after).all()
    if node.before.shape[-1] < geometry.n_rot or not finite:
        return Turn(
            node.name,
            expected,
            node.call,
            node.positions,
            np.full_like(target, np.nan),
            np.full(target.shape, np.inf),
        )
    before, after = (
        pairs_of(rows, geometry.n_rot, geometry.layout)
        for rows in (node.before, node.after)
    )
    energy = np.sum(np.abs(before) ** 2, axis=1)
    some = np.where(energy > 0, energy, 1.0)
    turn = np.sum(np.conj(before) * after, axis=1) / some
    missed = np.sum(np.abs(after - target[:, None, :] * before) ** 2, axis=1)
    error = np.sqrt(missed / some) / table.attention_factor
    nothing = (energy == 0) & (missed == 0)  # zeros in and out: nothing can be said
    turn[nothing] = np.nan
    error[nothing] = np.nan
    rest = np.abs(node.after - node.before)[..., geometry.n_rot :]
    if rest.size and rest.max() > 0:  # dimensions that must stay as they are
        error[:] = np.inf
    return Turn(node.name, expected, node.call, node.positions, turn, error)


def executed_by_node(turns: list[Turn]) -> list[Executed]:
    """Frequencies and gains of each node, fitted to all positions at which it was seen."""
    names = list(dict.fromkeys(turn.node for turn in turns))
    return [_fit([turn for turn in turns if turn.node == name]) for name in names]


def _fit(seen: list[Turn]) -> Executed:
    """The slope of the angle over the first positions, made precise at the far ones as long as the
    number of whole turns until there is certain.

    Where the first positions are not those of one token after the other (compressed tokens), the
    turns between them are believed to be the wanted ones: what is wrong by whole turns is an error
    of the rotation."""
    import numpy as np

    first, *far = seen
    expected = first.expected
    places = first.positions.astype(np.float64)[:, None]
    believed = np.zeros(first.turn.shape[1])
    if len(first.positions) < 2 or (np.diff(first.positions) != 1).any():
        believed = np.asarray(expected.kernel_table.inv_freq)
    angles = np.angle(first.turn * np.exp(-1j * places * believed))
    angles = np.unwrap(angles, axis=0)
    angles -= 2 * np.pi * np.round(angles[:1] / (2 * np.pi))
    inv_freq = np.sum(places * np.nan_to_num(angles), axis=0)
    inv_freq[np.isnan(angles).all(axis=0)] = np.nan  # a layer of zeros says nothing
    inv_freq = believed + inv_freq / max(1.0, float(np.sum(places**2)))
    unsure = frequency_bound(expected.kernel_table, expected.geometry) + _READING / max(
        1.0, float(places[-1, 0])
    )
    reach = int(places[-1, 0])
    for turn in far:
        places = turn.positions.astype(np.float64)[:, None]
        residual = np.angle(
            np.nansum(turn.turn * np.exp(-1j * places * inv_freq), axis=0)
        )
        certain = unsure * places[-1, 0] < 1.0
        inv_freq = np.where(certain, inv_freq + residual / places.mean(), inv_freq)
        reach = int(places[-1, 0]) if certain.all() else reach
    turns_seen = np.concatenate([turn.turn for turn in seen])
    known = np.maximum(1, np.isfinite(turns_seen).sum(axis=0))
    gains = np.sqrt(np.nansum(np.abs(turns_seen) ** 2, axis=0) / known)
    gains[~np.isfinite(turns_seen).any(axis=0)] = np.nan
    return Executed(first.node, expected, first.call, inv_freq, gains, reach)


def node_rows(turns: list[Turn], nodes: list[Executed]) -> list[NodeRow]:
    """Node by node, in the order in which llama.cpp computes them."""
    errors: dict[str, float] = {}
    for turn in turns:
        errors[turn.node] = max(
            errors.get(turn.node, 0.0), float(_known(turn.error).max())
        )
    rows = []
    for node in nodes:
        parameters = {k: v for k, v in asdict(node.call).items() if k != "factors"}
        frequency, gain = (
            float(error(node).max()) for error in (_frequency_error, _gain_error)
        )
        rows.append(NodeRow(node.node, parameters, errors[node.node], frequency, gain))
    return rows


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 in place of what could not be measured."""
    import numpy as np

    known: NDArray[np.float64] = np.nan_to_num(values, nan=0.0, posinf=np.inf)
    return known


def _frequency_error(node: Executed) -> NDArray[np.float64]:
    """Relative, absolute where the pair must not turn."""
    import numpy as np

    target = np.asarray(node.expected.kernel_table.inv_freq)
    return _known(np.abs(node.inv_freq - target) / np.where(target == 0, 1.0, target))


def _frequency_tolerance(node: Executed, slack: float) -> NDArray[np.float64]:
    import numpy as np

    expected = node.expected
    target = np.asarray(expected.kernel_table.inv_freq)
    bound = frequency_bound(
        expected.kernel_table, expected.geometry
    ) * slack + _READING / max(1, node.reach)
    return _known(bound / np.where(target == 0, 1.0, target))


def _gain_error(node: Executed) -> NDArray[np.float64]:
    import numpy as np

    return _known(np.abs(node.gain / node.expected.kernel_table.attention_factor - 1))


def check_graph(
    gguf: GgufFile, turns: list[Turn], nodes: list[Executed], gpu: bool
) -> list[Check]:
    slack = OTHER_DEVICES if gpu else 1.0
    checks = [_check_frequency(gguf, nodes, slack), _check_gain(gguf, nodes, slack)]
    reported = not all(check.passed for check in checks)
    return [
        _check_rotation(turns, len(nodes), slack, reported),
        *checks,
        *_check_layers(nodes),
    ]


def _check_layers(nodes: list[Executed]) -> list[Check]:
    """Which layers rotate, where some must not. A sliding-window layer's node has a ``Expected``
    without layers."""
    layers = next((node.expected.layers for node in nodes if node.expected.layers), ())
    if "unrotated" not in layers:
        return []
    seen = {layer_of_node(node.node) for node in nodes}
    wrong = [i for i, kind in enumerate(layers) if (i in seen) is (kind == "unrotated")]
    detail = f"{len(seen)} of {len(layers)} layers rotate" + (
        f"; layer {wrong[0]} is not as wanted" if wrong else ""
    )
    return [
        Check(
            "graph",
            "layers that rotate and must not, or reverse",
            len(wrong),
            0,
            detail,
        )
    ]


def _worst(
    errors: list[NDArray[np.float64]], tolerances: list[NDArray[np.float64]]
) -> tuple[int, Any, int]:
    """Which array holds the worst value, at which index, and how many arrays hold a failure. Of
    failures it is the one that is most too large (the first of about equal ones), else the largest
    value."""
    import numpy as np

    excess = [
        float((error / tolerance).max())
        for error, tolerance in zip(errors, tolerances, strict=True)
    ]
    failed = sum(value > 1 for value in excess)
    ranks = excess if failed else [float(error.max()) for error in errors]
    which = next(i for i, rank in enumerate(ranks) if rank >= 0.99 * max(ranks))
    place = errors[which] / tolerances[which] if failed else errors[which]
    return which, np.unravel_index(int(place.argmax()), place.shape), failed


def _check_rotation(
    turns: list[Turn], nodes: int, slack: float, reported: bool
) -> Check:
    errors = [_known(turn.error) for turn in turns]
    bounds = [
        turn_bound(
            turn.positions, turn.expected.kernel_table, turn.expected.geometry, slack
        )
        for turn in turns
    ]
    which, place, failed = _worst(errors, bounds)
    turn = turns[which]
    pair = int(place[1])
    last = max(int(seen.positions[-1]) for seen in turns)
    why = (
        f"the operation is {turn.call}, and does not turn by the wanted table"
        if failed and not reported
        else ""
    )
    return Check(
        "graph",
        f"{nodes} ROPE nodes, worst |Δ| / gain",
        float(errors[which][place]),
        float(bounds[which][place]),
        f"{turn.node}, position {turn.positions[place[0]]:,} of {last + 1:,}, "
        f"{_pair(turn.expected, pair)}",
        why,
    )


def _check_frequency(gguf: GgufFile, nodes: list[Executed], slack: float) -> Check:
    errors = [_frequency_error(node) for node in nodes]
    tolerances = [_frequency_tolerance(node, slack) for node in nodes]
    which, (pair,), failed = _worst(errors, tolerances)
    node = nodes[which]
    off = int((errors[which] > tolerances[which]).sum())
    expected = node.expected
    detail = f"{node.node}, {_pair(expected, int(pair))}"
    why = ""
    if failed:
        target = expected.table.inv_freq[pair]
        executed = float(node.inv_freq[pair])
        ratio = f" (×{executed / target:.4g})" if target else ""
        detail += (
            f": {target:.4g} rad a token wanted, {executed:.4g} executed{ratio}; {off} of "
            f"{len(node.gain)} pairs"
        )
        detail += f" are off, in {failed} of {len(nodes)} nodes"
        why = frequency_reason(gguf, expected, node.call)
    value = float(errors[which][pair])
    tolerance = float(tolerances[which][pair])
    return Check(
        "graph", "frequency executed, relative error", value, tolerance, detail, why
    )


def _check_gain(gguf: GgufFile, nodes: list[Executed], slack: float) -> Check:
    import numpy as np

    tolerance = EXACT_GAIN * slack
    errors = [_gain_error(node) for node in nodes]
    which, (pair,), failed = _worst(
        errors, [np.full_like(error, tolerance) for error in errors]
    )
    node = nodes[which]
    gain = float(nodes[which].gain[pair])
    target = node.expected.kernel_table.attention_factor
    detail = f"{node.node}: wanted {target:.7g}, executed {gain:.7g}"
    detail += f", in {failed} of {len(nodes)} nodes" if failed else ""
    why = gain_reason(gguf, target, gain, node.call) if failed else ""
    return Check(
        "graph",
        "gain executed, relative error",
        float(errors[which][pair]),
        tolerance,
        detail,
        why,
    )


def _pair(expected: Expected, pair: int) -> str:
    """A pair in the user's terms: ``pair 7 of 16 (dimensions 14 and 15, wavelength 338
    tokens)``."""
    geometry = expected.geometry
    pairs = geometry.n_rot // 2
    first, second = (
        (2 * pair, 2 * pair + 1) if geometry.layout == "norm" else (pair, pair + pairs)
    )
    length = expected.table.wavelengths[pair]
    tokens = "never turns" if math.isinf(length) else f"wavelength {length:,.4g} tokens"
    return f"pair {pair} of {pairs} (dimensions {first} and {second}, {tokens})"
