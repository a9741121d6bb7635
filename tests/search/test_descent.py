"""The search itself, on objectives whose optimum is known."""

from __future__ import annotations

import math
from random import Random

import pytest
from search_objectives import SPACE, bowl

from ggext.search.descent import Descent, rounds_of
from ggext.search.space import Point


@pytest.mark.parametrize(
    ("gain", "first", "last", "overshoot"),
    [(1.0, 10, 22, 1.5), (1.08, 8, 20, 1.0), (0.95, 12, 17, 2.2), (1.1, 6, 26, 0.7)],
)
def test_a_known_optimum_is_found(
    gain: float, first: int, last: int, overshoot: float
) -> None:
    best = Point(gain, first, last, overshoot)
    losses = bowl(best)
    descent = Descent(SPACE, losses, texts=8, most=40)
    found = descent.run()
    assert len(descent.evaluations) <= 40
    start, end = losses(SPACE.start, 8)[0], losses(found, 8)[0]
    assert end < 0.05 + 0.2 * start
    assert abs(math.log(found.overshoot / overshoot)) < 0.25
    assert abs(found.last - last) <= 2


def test_the_start_stays_where_it_is_best() -> None:
    descent = Descent(SPACE, bowl(SPACE.start), texts=8, most=40)
    assert descent.run() == SPACE.start
    assert len(descent.evaluations) <= 40


def test_texts_grow_and_what_few_of_them_liked_is_dropped() -> None:
    """On the first two texts a wrong step helps, on the others it does not."""

    def losses(point: Point, count: int) -> list[float]:
        wrong = point.gain > 1
        each = [0.1 if wrong else 1.0] * 2 + [5.0 if wrong else 1.0] * 6
        return each[:count]

    descent = Descent(SPACE, losses, texts=8, most=40)
    assert descent.run() == SPACE.start
    texts = [one.texts for one in descent.evaluations]
    assert texts == sorted(texts)
    assert set(texts) == {2, 4, 8}


@pytest.mark.parametrize("most", [2, 5, 17, 40])
def test_no_more_tables_are_measured_than_allowed(most: int) -> None:
    """A loss of pure chance, which always finds something to follow."""

    def losses(point: Point, count: int) -> list[float]:
        return [Random(f"{point.key} {i}").random() for i in range(count)]

    descent = Descent(SPACE, losses, texts=4, most=most)
    found = descent.run()
    assert len(descent.evaluations) <= most
    deepest = descent.evaluations[-1].texts
    measured = [one for one in descent.evaluations if one.texts == deepest]
    assert found in [one.point for one in measured]
    assert len(descent.evaluations) == len(
        {(e.point, e.texts) for e in descent.evaluations}
    )


def test_rounds_end_with_all_texts() -> None:
    assert rounds_of(8) == (2, 4, 8)
    assert rounds_of(6) == (2, 3, 6)
    assert rounds_of(4) == (2, 2, 4)
    assert rounds_of(2) == (2, 2, 2)
    assert rounds_of(1) == (1, 1, 1)
