"""The word success: more right answers at the target, and nothing lost at the short length."""

from __future__ import annotations

import pytest

from ggext.quality.statistics import Estimate
from ggext.tune.verdict import Verdict

GAIN, LOSS = Estimate(0.3, 0.2, 0.4, 100, 10), Estimate(-0.3, -0.4, -0.2, 100, 10)
OPEN = Estimate(0.01, -0.1, 0.1, 100, 10)


def rise(value: float, half: float = 0.001) -> Estimate:
    return Estimate(value, value - half, value + half, 8, 8)


def verdict(
    answers: Estimate | None = GAIN,
    perplexity: Estimate | None = None,
    short_answers: Estimate | None = OPEN,
    short_perplexity: Estimate | None = None,
    price: Estimate | None = None,
) -> Verdict:
    return Verdict(
        answers, perplexity, short_answers, short_perplexity, price, 2048, 256
    )


def test_more_answers_and_nothing_lost_is_a_success() -> None:
    assert verdict().outcome == "success"
    assert verdict().words.startswith("success")


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (verdict(short_answers=LOSS), "worse short"),
        (verdict(short_perplexity=rise(0.02)), "worse short"),
        (verdict(answers=LOSS), "worse"),
        (verdict(answers=OPEN), "no gain"),
        (verdict(answers=None), "no gain"),
    ],
)
def test_anything_else_is_not_called_one(made: Verdict, outcome: str) -> None:
    assert made.outcome == outcome
    assert not made.words.startswith("success")


def test_perplexity_alone_is_never_the_verdict() -> None:
    """Thirty steps without any scaling bring it below YaRN's while recall stays at .08."""
    better = rise(-0.5)
    assert (
        verdict(answers=OPEN, perplexity=better, short_perplexity=better).outcome
        == "no gain"
    )


def test_the_scalings_own_price_is_not_the_trainings() -> None:
    assert verdict(short_perplexity=rise(0.018), price=rise(0.02)).outcome == "success"
    assert (
        verdict(short_perplexity=rise(0.03), price=rise(0.02)).outcome == "worse short"
    )
    assert verdict(short_perplexity=rise(0.3), price=rise(7.0)).outcome == "worse short"
    assert verdict(short_perplexity=rise(0.004)).outcome == "success"


def test_one_text_alone_counts_by_its_figure() -> None:
    alone = Estimate(3.0, -1.0, float("inf"), 1, 1)
    assert verdict(short_perplexity=alone).outcome == "worse short"


def test_the_lines_say_what_it_rests_on() -> None:
    lines = verdict(short_perplexity=rise(0.02)).lines()
    assert (
        lines[0]
        == "not a success: the model got worse at 256 tokens, where it needed no scaling"
    )
    assert "  perplexity at 256 tokens, against it: +2.0 % [+1.9, +2.1]" in lines
