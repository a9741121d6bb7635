"""The tables that a search may choose from: YaRN's, with four of its numbers free.

Every one of them divides a slower pair by at least as much as a faster one, from 1 to the factor,
so its frequencies fall from pair to pair as the unscaled ones do. Each pair for itself would be
more to fit than a handful of texts can tell (measured: on the texts of the search its loss falls to
a seventh, on others it rises).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ggext.errors import RopeError
from ggext.rope import methods
from ggext.rope.encode import encode
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

Coordinate = Literal["overshoot", "last", "first", "gain"]
#: In the order in which they are tried.
COORDINATES: tuple[Coordinate, ...] = ("overshoot", "last", "first", "gain")

#: The range of the gain, in YaRN's own, and of the factor, in target / original context.
_GAINS = (0.8, 1.25)
_OVERSHOOTS = (0.5, 4.0)
#: The first step of each: a logarithm of the gain and of the factor, a share of the pairs.
_GAIN_STEP = math.log(1.08)
_OVERSHOOT_STEP = math.log(1.5)
_PAIRS_STEP = 1 / 8


@dataclass(frozen=True)
class Point:
    """Four numbers that stand for a table."""

    # The gain on cos and sin, in YaRN's own for the factor.
    gain: float
    # The last pair that is kept, and the first that is divided by the whole factor.
    first: int
    last: int
    # The factor, in target / original context.
    overshoot: float

    @property
    def key(self) -> str:
        """What tells it from every other, in a partial run."""
        return f"{self.gain!r},{self.first},{self.last},{self.overshoot!r}"


class Space:
    """The tables around YaRN's for one model. ``yarn``: the request in full, its factor, original
    context and context named; ``start``: the point that stands for it exactly."""

    def __init__(self, yarn: RopeScaling, geometry: RopeGeometry, arch: str) -> None:
        self.yarn = yarn
        self._geometry = geometry
        self._arch = arch
        low, high = methods.yarn_correction_range(
            methods.YARN_BETA_FAST,
            methods.YARN_BETA_SLOW,
            True,
            methods.original_context(yarn, geometry),
            geometry,
        )
        self.start = Point(1.0, round(low), round(high), 1.0)
        self._most = max(self.start.last, geometry.n_rot // 2)
        #: Those that llama.cpp can be made to do with this architecture.
        self.free = tuple(
            name
            for name in COORDINATES
            if any(
                self.moved(self.start, name, sign, 0) is not None for sign in (1, -1)
            )
        )

    def scaling(self, point: Point) -> RopeScaling:
        """The request that makes the point's table. The betas lie in the middle between two bounds,
        where no rounding gives the wrong one."""
        factor = (self.yarn.factor or 1.0) * point.overshoot
        fast, slow = (
            methods.yarn_rotations(pair, self.yarn, self._geometry)
            for pair in (point.first + 0.5, point.last - 0.5)
        )
        return replace(
            self.yarn,
            factor=factor,
            attention_factor=methods.yarn_gain(factor) * point.gain,
            beta_fast=fast,
            beta_slow=slow,
            context_reason="the factor is searched, the context is not",
        )

    def table(self, point: Point) -> RopeTable:
        return methods.make_table(self.scaling(point), self._geometry)

    def moved(
        self, point: Point, name: Coordinate, sign: int, halvings: int
    ) -> Point | None:
        """The point a step further along a coordinate; None beyond its range, where a step is none
        any more, or where no file can say it exactly."""
        share = sign / 2**halvings
        pairs = sign * max(
            1, round(self._geometry.n_rot // 2 * _PAIRS_STEP) >> halvings
        )
        other = {
            "gain": replace(point, gain=point.gain * math.exp(_GAIN_STEP * share)),
            "overshoot": replace(
                point, overshoot=point.overshoot * math.exp(_OVERSHOOT_STEP * share)
            ),
            "first": replace(point, first=point.first + pairs),
            "last": replace(point, last=point.last + pairs),
        }[name]
        return other if self._holds(other) else None

    def _holds(self, point: Point) -> bool:
        least = max(_OVERSHOOTS[0], 1 / (self.yarn.factor or 1.0))
        inside = (
            _GAINS[0] <= point.gain <= _GAINS[1]
            and least <= point.overshoot <= _OVERSHOOTS[1]
            and 0 <= point.first <= point.last <= self._most
            and point.last > 0
        )
        if not inside:
            return False
        try:
            encoding = encode(self.scaling(point), self._geometry, self._arch)
        except RopeError:
            return False
        return encoding.exactness.is_exact
