"""Whether a run helped: before and after on the same held-out items, at the target and at the short
length. Perplexity alone never decides it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ggext.quality.differences import Difference
from ggext.quality.phrases import change

if TYPE_CHECKING:
    from ggext.quality.statistics import Estimate

#: By how much perplexity at the short length may rise above the pretrained model's, as a share: by
#: what the scaling costs untuned, but at least and at most so much.
SHORT_LEAST, SHORT_MOST = 0.005, 0.05

Outcome = Literal["success", "no gain", "worse short", "worse"]


@dataclass(frozen=True)
class Verdict:
    """Paired differences: of answers as shares, of perplexity as a share of what was before. None:
    not measured."""

    # Tuned against untuned with the same scaling, at the target.
    answers: Estimate | None
    perplexity: Estimate | None
    # Tuned against the pretrained model without any scaling, at the short length.
    short_answers: Estimate | None
    short_perplexity: Estimate | None
    # Untuned against the pretrained model: what the scaling itself costs there.
    price: Estimate | None
    # Tokens.
    target: int
    short: int

    @property
    def outcome(self) -> Outcome:
        if _below(self.answers):
            return "worse"
        if _below(self.short_answers) or self._perplexity_rose:
            return "worse short"
        return (
            "success"
            if self.answers is not None and self.answers.low > 0
            else "no gain"
        )

    @property
    def _perplexity_rose(self) -> bool:
        """One text alone has no interval: then its figure counts."""
        rise = self.short_perplexity
        if rise is None or rise.value <= self.allowed_rise:
            return False
        return rise.low > 0 or rise.units < 2

    @property
    def allowed_rise(self) -> float:
        """Of perplexity at the short length, as a share."""
        price = 0.0 if self.price is None else self.price.value
        return min(max(price, SHORT_LEAST), SHORT_MOST)

    @property
    def words(self) -> str:
        """The outcome in a sentence."""
        return {
            "success": f"success: more right answers at {self.target:,} tokens, and none are lost "
            f"at {self.short:,}",
            "no gain": f"no gain is shown: as many right answers at {self.target:,} tokens as "
            "before, within the error bars",
            "worse short": f"not a success: the model got worse at {self.short:,} tokens, where "
            "it needed no scaling",
            "worse": f"not a success: fewer right answers at {self.target:,} tokens than before",
        }[self.outcome]

    def lines(self) -> list[str]:
        """The outcome and what it rests on."""
        rows = (
            (f"answers at {self.target:,} tokens, against untuned", self.answers),
            (f"perplexity at {self.target:,} tokens, against untuned", self.perplexity),
            (
                f"answers at {self.short:,} tokens, against the pretrained model",
                self.short_answers,
            ),
            (f"perplexity at {self.short:,} tokens, against it", self.short_perplexity),
            ("what the scaling costs there untuned", self.price),
        )
        differences = [
            f"  {what}: {change(value)}" for what, value in rows if value is not None
        ]
        return [self.words, *differences]


def _below(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.high < 0


def verdict_of(
    untuned: Sequence[Difference],
    pretrained: Sequence[Difference],
    price: Sequence[Difference],
    target: int,
    short: int,
) -> Verdict:
    """``untuned``, ``pretrained``: how the tuned file differs from each of the two; ``price``: how
    the untuned one differs from the pretrained one."""
    return Verdict(
        _answers(untuned, target),
        _perplexity(untuned, target, target),
        _answers(pretrained, short),
        _perplexity(pretrained, 1, short),
        _perplexity(price, 1, short),
        target,
        short,
    )


def _answers(differences: Iterable[Difference], length: int) -> Estimate | None:
    matches = (d for d in differences if d.what == "answers" and d.end == length)
    return next((d.difference for d in matches), None)


def _perplexity(
    differences: Iterable[Difference], least: int, most: int
) -> Estimate | None:
    """At the last positions of texts of ``least`` to ``most`` tokens."""
    matches = [
        d for d in differences if d.what == "perplexity" and least <= d.end <= most
    ]
    return max(matches, key=lambda d: d.end).difference if matches else None
