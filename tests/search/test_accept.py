"""When a table is better than YaRN's, on made-up numbers."""

from __future__ import annotations

import math

import pytest

from ggext.quality.statistics import t_quantile
from ggext.search.accept import judged

YARN = dict(enumerate([0.10, 0.08, 0.12, 0.09, 0.11, 0.10, 0.07, 0.13]))
SHORT = dict(enumerate([2.0, 2.2, 1.8]))


def lower(losses: dict[int, float], by: list[float]) -> dict[int, float]:
    return {i: loss - by[i % len(by)] for i, loss in losses.items()}


def test_what_is_better_on_every_text_is_accepted() -> None:
    verdict = judged(YARN, lower(YARN, [0.05, 0.04, 0.06]), SHORT, SHORT)
    assert verdict.accepted
    assert verdict.reason == ""
    assert verdict.yarn_loss == pytest.approx(0.1)
    assert verdict.difference.units == 8
    differences = [-0.05, -0.04, -0.06, -0.05, -0.04, -0.06, -0.05, -0.04]
    mean = sum(differences) / 8
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 7)
    half = t_quantile(7) * deviation / math.sqrt(8)
    assert verdict.difference.low == pytest.approx(mean - half)
    assert verdict.difference.high == pytest.approx(mean + half)


def test_what_one_text_decides_is_not_accepted() -> None:
    verdict = judged(YARN, lower(YARN, [0.3, -0.01, -0.01, -0.01]), SHORT, SHORT)
    assert verdict.difference.value < 0 < verdict.difference.high
    assert not verdict.accepted
    assert "not better beyond chance" in verdict.reason


def test_nothing_won_is_nothing_accepted() -> None:
    assert not judged(YARN, YARN, SHORT, SHORT).accepted
    worse = judged(YARN, lower(YARN, [-0.05, -0.04]), SHORT, SHORT)
    assert not worse.accepted
    assert worse.difference.low > 0


@pytest.mark.parametrize(
    ("rise", "accepted"), [(0.0, True), (0.0049, True), (0.0051, False)]
)
def test_short_texts_may_lose_half_a_per_cent(rise: float, accepted: bool) -> None:
    short = {i: loss * (1 + rise) for i, loss in SHORT.items()}
    verdict = judged(YARN, lower(YARN, [0.05, 0.04]), SHORT, short)
    assert verdict.short_rise == pytest.approx(rise)
    assert verdict.accepted is accepted
    assert accepted or "on short texts, more than 0.5 %" in verdict.reason


def test_a_loss_that_is_no_number_is_not_accepted() -> None:
    short = dict.fromkeys(SHORT, math.nan)
    assert not judged(YARN, lower(YARN, [0.05, 0.04]), SHORT, short).accepted
    assert not judged(YARN, dict.fromkeys(YARN, math.nan), SHORT, SHORT).accepted
