"""When a table is better than YaRN's: by more than chance, and at no price on short texts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from ggext.quality.statistics import Estimate, mean, paired

#: By how much the loss on short texts may be above YaRN's, relative to it.
MOST_SHORT_RISE = 0.005


@dataclass(frozen=True)
class Verdict:
    """What the texts said that the search had not seen. Losses in nats."""

    # The mean losses on them.
    yarn_loss: float
    loss: float
    # The found table's minus YaRN's, paired by text, with its 95 % t interval.
    difference: Estimate
    # By how much the loss on short texts is above YaRN's, relative to it.
    short_rise: float
    # Why YaRN stays; empty where the table is better.
    reason: str

    @property
    def accepted(self) -> bool:
        return not self.reason


def judged(
    yarn: dict[Hashable, float],
    candidate: dict[Hashable, float],
    short_yarn: Mapping[Hashable, float],
    short_candidate: Mapping[Hashable, float],
) -> Verdict:
    """The verdict on the losses of each text, of the target's length and of short ones; a text is a
    unit."""
    difference = paired(yarn, candidate)
    assert difference is not None  # the same texts
    before, after = (
        math.fsum(losses.values()) for losses in (short_yarn, short_candidate)
    )
    rise = after / before - 1
    return Verdict(
        mean(list(yarn.values())).value,
        mean(list(candidate.values())).value,
        difference,
        rise,
        _reason(difference, rise),
    )


def _reason(difference: Estimate, rise: float) -> str:
    if not difference.high < 0:
        return (
            f"on {difference.units} texts that the search had not seen its best table is not "
            f"better beyond chance ({difference.value:+.4f} nats, 95 % {difference.low:+.4f} to "
            f"{difference.high:+.4f})"
        )
    if not rise <= MOST_SHORT_RISE:
        return (
            f"its best table costs {100 * rise:.2f} % on short texts, more than "
            f"{100 * MOST_SHORT_RISE:g} %"
        )
    return ""
