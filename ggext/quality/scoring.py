"""What an answer is worth, and how far a model reaches: RULER's and NoLiMa's definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggext.quality.statistics import Estimate

#: RULER (Hsieh et al. 2024): Llama-2-7b-chat's score at 4,096 tokens.
RULER_THRESHOLD = 0.856
#: NoLiMa (Modarressi et al. 2025): the share of the model's own short score.
NOLIMA_SHARE = 0.85


def match_all(answer: str, references: Sequence[str]) -> float:
    """The share of the references that the answer holds, whatever its case (RULER's
    ``string_match_all``)."""
    text = _cleaned(answer)
    return sum(reference.lower() in text for reference in references) / len(references)


def match_any(answer: str, references: Sequence[str]) -> float:
    """1 where the answer holds one of the references (RULER's ``string_match_part``)."""
    text = _cleaned(answer)
    return float(any(reference.lower() in text for reference in references))


def _cleaned(answer: str) -> str:
    """Control characters become line breaks, as RULER's evaluation does before it compares."""
    return "".join("\n" if ord(c) < 32 else c for c in answer).strip().lower()


@dataclass(frozen=True)
class Reach:
    """The effective context by one definition."""

    # "ruler" or "nolima".
    definition: str
    # What a length's lower bound must reach, from 0 to 1; None: no short score to take it from.
    threshold: float | None
    # Tokens: the longest length that reaches it, and all shorter ones do; None: none does.
    length: int | None
    # The next longer length that was measured, None: there is none.
    next_length: int | None
    # Whether that one's upper bound is below the threshold; if not, more texts could decide it.
    decided: bool


def effective_context(scores: dict[int, Estimate]) -> tuple[Reach, Reach]:
    """RULER's absolute and NoLiMa's relative definition, of the scores by length.

    A length counts when the lower 95 % bound of its score reaches the threshold and every shorter
    one's does. NoLiMa's own short score is the score at the shortest length that was measured.
    """
    short = scores[min(scores)].value if scores else 0.0
    relative = NOLIMA_SHARE * short if short > 0 else None
    return _reach("ruler", RULER_THRESHOLD, scores), _reach("nolima", relative, scores)


def _reach(
    definition: str, threshold: float | None, scores: dict[int, Estimate]
) -> Reach:
    reached = None
    for length in sorted(scores):
        estimate = scores[length]
        if threshold is None or estimate.low < threshold:
            decided = threshold is None or estimate.high < threshold
            return Reach(definition, threshold, reached, length, decided)
        reached = length
    return Reach(definition, threshold, reached, None, True)
