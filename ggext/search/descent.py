"""Coordinate steps with halving: few tables, on more texts as the steps get smaller.

Each round takes steps along one coordinate after the other, as long as one helps; the next halves
them and takes more texts. The two best tables of a round go into the next, YaRN's own next to them
(successive halving), so that what few texts liked by chance is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean

from ggext.search.space import Coordinate, Point, Space

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


class _Spent(Exception):  # noqa: N818 - no error: a round has used up its evaluations
    pass


def rounds_of(texts: int) -> tuple[int, int, int]:
    """The texts of each round, the last one all of them. One text alone misleads."""
    first, second = (min(texts, max(2, texts // part)) for part in (4, 2))
    return first, second, texts


class Descent:
    """One search. ``evaluations``: each table that was measured, once for each number of texts, in
    order; at most ``most``, of which each round may use its share and what those before it left."""

    def __init__(self, space: Space, losses: Losses, texts: int, most: int) -> None:
        self._space = space
        self._losses = losses
        self._rounds = rounds_of(texts)
        self._most = most
        self._allowed = 0
        self.evaluations: list[Evaluation] = []
        self._known: dict[tuple[Point, int], float] = {}

    def run(self) -> Point:
        """The best point on the texts of the last round that measured any; the start is asked in
        every round."""
        start = self._space.start
        survivors = [start]
        best = start
        for halvings, texts in enumerate(self._rounds):
            self._allowed = round(self._most * (halvings + 1) / len(self._rounds))
            with suppress(_Spent):
                self._descend(
                    min(survivors, key=lambda p: self._loss(p, texts)), texts, halvings
                )
            ranked = self._ranked(texts)
            if ranked:
                best = ranked[0]
                survivors = [start, *[p for p in ranked if p != start][:_SURVIVORS]]
        return best

    def _descend(self, point: Point, texts: int, halvings: int) -> None:
        """As far as steps of one size lead from a point."""
        while True:
            before = point
            for name in self._space.free:
                for sign in (1, -1):
                    further = self._walked(point, texts, (name, sign, halvings))
                    if further != point:
                        point = further
                        break
            if point == before:
                return

    def _walked(
        self, point: Point, texts: int, step: tuple[Coordinate, int, int]
    ) -> Point:
        """Steps in one direction, as long as each helps."""
        name, sign, halvings = step
        while True:
            further = self._space.moved(point, name, sign, halvings)
            if further is None:
                return point
            if self._loss(further, texts) > self._loss(point, texts) * (
                1 - _LEAST_GAIN
            ):
                return point
            point = further

    def _ranked(self, texts: int) -> list[Point]:
        """Those that were measured on so many texts, the best first."""
        measured = [
            (loss, point) for (point, n), loss in self._known.items() if n == texts
        ]
        return [point for _, point in sorted(measured, key=lambda pair: pair[0])]

    def _loss(self, point: Point, texts: int) -> float:
        if (point, texts) not in self._known:
            if len(self.evaluations) >= self._allowed:
                raise _Spent
            loss = fmean(self._losses(point, texts))
            self._known[point, texts] = loss
            self.evaluations.append(Evaluation(point, texts, loss))
        return self._known[point, texts]
