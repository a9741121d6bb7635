"""Two RoPE tables against each other, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ggext.rope.scaling import RopeTable

#: GGUF stores float32: a key or factor is off by up to 6e-8, a frequency by a few of these.
EXACT_FREQUENCY = 1e-6
EXACT_GAIN = 1e-6


@dataclass(frozen=True)
class Comparison:
    """How far an effective table is from the expected one."""

    # The worst |effective / expected - 1| over the pairs; absolute where 0 is expected.
    frequency_error: float
    # The pair that has it.
    worst_pair: int
    # |effective / expected - 1| of the attention factor.
    gain_error: float

    @property
    def is_exact(self) -> bool:
        return self.frequency_error <= EXACT_FREQUENCY and self.gain_error <= EXACT_GAIN


def compare(requested: RopeTable, effective: RopeTable) -> Comparison:
    """Tables of different length compare as infinitely wrong."""
    if len(requested.inv_freq) != len(effective.inv_freq):
        return Comparison(
            float("inf"),
            min(len(requested.inv_freq), len(effective.inv_freq)),
            float("inf"),
        )
    errors = pair_errors(requested, effective)
    worst = max(range(len(errors)), key=errors.__getitem__)
    gain = abs(effective.attention_factor / requested.attention_factor - 1)
    return Comparison(errors[worst], worst, gain)


def pair_errors(requested: RopeTable, effective: RopeTable) -> list[float]:
    """Relative error of each pair's frequency; absolute where the wanted one is 0."""
    return [
        abs(e / w - 1) if w else abs(e)
        for w, e in zip(requested.inv_freq, effective.inv_freq, strict=True)
    ]
