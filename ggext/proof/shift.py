"""Level ``shift``: what moving the cached keys to other positions does to this file.

A chat that rolls its context moves keys that are turned already. llama.cpp does that with the same
ROPE operation, gain and all, so a gain other than 1 is applied again at each shift; and in all
layers, also in those that do not rotate where a model has such layers, and on keys that were normed
after their rotation.
"""

from __future__ import annotations

import math
import operator
from itertools import accumulate
from typing import TYPE_CHECKING

from ggext.errors import ModelError
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import factor_tensors
from ggext.proof.reference import divergence, sample_tokens
from ggext.proof.report import Check, ShiftRow
from ggext.rope.decode import geometry_of
from ggext.rope.shifts import folding_obstacle, shift_damage, turned_wrongly

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.model import Model
    from ggext.runtime.probe import Probe
    from ggext.runtime.rope_watcher import RopeNode

SHIFTS = 3
_TOKENS, _DISTANCE = 48, 16
#: Three rotations in float32 leave a norm as it was within some 1e-6.
TOLERANCE = 1e-4
#: nats; a right shift leaves about 1e-11 with float32 weights. With quantized ones the least change
#: of a value changes how others are rounded: SmolLM2-135M in Q4_1 differs by 5e-3 from itself, the
#: same tokens being evaluated at other positions without a shift. So much is allowed, and more.
KL_TOLERANCE = 1e-6
_NOISE = 10.0


def measure_shifts(model: Model) -> list[ShiftRow]:
    """The cache of 48 tokens is moved three times by 16, and after each time one token is decoded.

    Nothing is dropped from the cache: what the tokens see is the same, so a fresh evaluation must
    give the same logits, and every difference is the shift's. Raises ModelError where llama.cpp
    cannot shift this model, or does it unseen.
    """
    import numpy as np

    from ggext.runtime.probe import CELLS, Probe

    tokens = sample_tokens(model, _TOKENS + SHIFTS)
    norms = _KeyNorms()
    after = []
    with Probe(model, CELLS, norms.see) as probe:
        start = SHIFTS * _DISTANCE
        probe.decode(tokens[:_TOKENS], start)
        for shift in range(SHIFTS):
            probe.shift(-_DISTANCE)
            start -= _DISTANCE
            place = _TOKENS + shift
            after.append(probe.decode(tokens[place : place + 1], start + place)[0])
        fresh = _evaluated(probe, tokens, 0)
        elsewhere = _evaluated(probe, tokens, _DISTANCE)
    ratios = norms.ratios()
    kl = divergence(fresh, np.stack(after))[0]
    noise = divergence(fresh, elsewhere)[0]
    return [
        ShiftRow(i + 1, ratios[i], float(kl[i]), float(noise[i])) for i in range(SHIFTS)
    ]


def _evaluated(probe: Probe, tokens: list[int], start: int) -> NDArray[np.float32]:
    """The logits after the last tokens, (SHIFTS, n_vocab), from an empty cache and in the same
    batches as the shifted ones: kernels for one token round otherwise than those for many."""
    import numpy as np

    probe.clear()
    probe.decode(tokens[:_TOKENS], start)
    places = range(_TOKENS, _TOKENS + SHIFTS)
    return np.stack([probe.decode(tokens[at : at + 1], start + at)[0] for at in places])


class _KeyNorms:
    """The norm of each layer's cached keys, read where the shift itself passes over the cache.
    Change by change: after a sliding window tokens that were cached since take the place of
    others."""

    def __init__(self) -> None:
        self._changes: dict[str, list[float]] = {}

    def see(self, node: RopeNode) -> None:
        import numpy as np

        if not node.source.startswith("cache_k"):
            return
        cells = slice(0, _TOKENS)  # an empty cache is filled from its first cell on
        if not (node.positions[cells] == -_DISTANCE).all():
            raise ModelError(
                "llama.cpp keeps the tokens of a fresh cache elsewhere than ggext expects"
            )
        with np.errstate(over="ignore"):  # then they are infinite, and refused
            before, after = (
                float(np.linalg.norm(rows[cells])) for rows in (node.before, node.after)
            )
        if not (0 < before < math.inf and 0 < after < math.inf):
            raise ModelError(
                "the cached keys are zero or no finite numbers, which says nothing of a shift"
            )
        self._changes.setdefault(node.source, []).append(after / before)

    def ratios(self) -> list[float]:
        """After each shift, of the layer that changed most. Raises ModelError where no shift was
        seen."""
        if not self._changes or any(
            len(changes) % SHIFTS for changes in self._changes.values()
        ):
            raise ModelError(
                "llama.cpp shifted the cache without a ROPE operation that ggext can see"
            )
        by_layer = []
        for changes in self._changes.values():
            caches = len(changes) // SHIFTS  # an indexer's has the same name
            by_layer += [
                list(accumulate(changes[cache::caches], operator.mul))
                for cache in range(caches)
            ]
        return max(by_layer, key=lambda ratios: abs(math.log(ratios[-1])))


def check_shift(gguf: GgufFile, rows: list[ShiftRow], required: bool) -> Check:
    """Informative unless ``required``: a file that is not safe to roll is right as long as no one
    rolls it."""
    change = max(abs(row.k_norm - 1) for row in rows)
    kl = max(row.kl for row in rows)
    allowed = max(KL_TOLERANCE, _NOISE * max(row.noise for row in rows))
    if change <= TOLERANCE and kl > allowed:
        return Check(
            "shift",
            f"KL from a fresh evaluation after {len(rows)} shifts, nats",
            kl,
            allowed,
            "not safe to roll: the cached keys keep their length, but not their angles",
            _reason(gguf),
            required,
        )
    norms = ", ".join(f"×{row.k_norm:.4f}" for row in rows)
    divergences = ", ".join(f"{row.kl:.1e}" for row in rows)
    safe = change <= TOLERANCE
    verdict = "safe" if safe else "not safe"
    reason = "" if safe else _reason(gguf)
    return Check(
        "shift",
        f"norm of cached keys after {len(rows)} shifts, change",
        change,
        TOLERANCE,
        f"{verdict} to roll: {norms}; KL from a fresh evaluation {divergences} nats",
        reason,
        required,
    )


def _reason(gguf: GgufFile) -> str:
    """What a shift does to the file, and what helps."""
    keys = gguf.arch_keys()
    damage = shift_damage(keys, factor_tensors(gguf), gguf.arch)
    off = "switch context shifts off in programs that roll"
    wrong = turned_wrongly(gguf.arch)
    if wrong:
        return f"{wrong}, which no file can prevent: {off}"
    obstacle = folding_obstacle(gguf.arch, geometry_of(keys, gguf.arch))
    if obstacle:
        gainless = "or scale without a gain (RopeScaling('linear', factor=F))"
        return f"{damage}. It cannot be folded: {obstacle}. So {off}, {gainless}"
    return f"{damage}: {off}, or write the file with encoding='folded'"
