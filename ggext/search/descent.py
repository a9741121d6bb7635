"""Coordinate steps with halving: few tables, on more texts as the steps get smaller.

Each round takes steps along one coordinate after the other, as long as one helps; the next halves
them and takes more texts. The two best tables of a round go into the next (successive halving), so
that what few texts liked by chance is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ggext.search.space import Point, Space

#: The losses of a point on the first so many texts.
Losses = Callable[[Point, int], Sequence[float]]

#: A step must bring so much, relative to the loss: less is noise.
_LEAST_GAIN = 0.01
_SURVIVORS = 2


@dataclass(frozen=True)
class Evaluation:
    """A table, measured."""

    point: Point
    # Texts, and the mean loss on them in nats.
    texts: int
    loss: float


class _Spent(Exception):  # noqa: N818 - no error: the number of evaluations is used up
    pass


def rounds_of(texts: int) -> tuple[int, ...]:
    """The texts of each round, the last one all of them."""
    return tuple(sorted({max(1, texts // 4), max(1, texts // 2), texts}))


class Descent:
    """One search. ``evaluations``: each table that was measured, once for each number of texts, in
    order; at most ``most``."""

    def __init__(self, space: Space, losses: Losses, texts: int, most: int) -> None:
        self._space = space
        self._losses = losses
        self._rounds = rounds_of(texts)
        self._most = most
        self.evaluations: list[Evaluation] = []
        self._known: dict[tuple[Point, int], float] = {}

    def run(self) -> Point:
        """The best point; the start where nothing was better on all texts."""
        best = self._space.start
        survivors = [best]
        try:
            for halvings, texts in enumerate(self._rounds):
                best = min(survivors, key=lambda point: self._loss(point, texts))
                best = self._descended(best, texts, halvings)
                survivors = self._best_of(texts)
            # The start was left after a round of few texts: it is asked on all of them.
            if best != self._space.start:
                best = min(self._space.start, best, key=lambda p: self._loss(p, self._rounds[-1]))
        except _Spent:
            return self._best_of(self.evaluations[-1].texts)[0]
        return best

    def _descended(self, point: Point, texts: int, halvings: int) -> Point:
        """As far as steps of one size lead from it."""
        while True:
            before = point
            for name in self._space.free:
                for sign in (1, -1):
                    further = self._walked(point, texts, (name, sign, halvings))
                    if further != point:
                        point = further
                        break
            if point == before:
                return point

    def _walked(self, point: Point, texts: int, step: tuple[str, int, int]) -> Point:
        """Steps in one direction, as long as each helps."""
        name, sign, halvings = step
        while True:
            further = self._space.moved(point, name, sign, halvings)  # type: ignore[arg-type]
            if further is None:
                return point
            if self._loss(further, texts) > self._loss(point, texts) * (1 - _LEAST_GAIN):
                return point
            point = further

    def _best_of(self, texts: int) -> list[Point]:
        measured = [(loss, point) for (point, n), loss in self._known.items() if n == texts]
        return [point for _, point in sorted(measured, key=lambda pair: pair[0])[:_SURVIVORS]]

    def _loss(self, point: Point, texts: int) -> float:
        if (point, texts) not in self._known:
            if len(self.evaluations) >= self._most:
                raise _Spent
            loss = fmean(self._losses(point, texts))
            self._known[point, texts] = loss
            self.evaluations.append(Evaluation(point, texts, loss))
        return self._known[point, texts]
