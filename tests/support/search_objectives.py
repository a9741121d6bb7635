"""Objectives for a search whose optimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable

from ggext.rope.scaling import RopeGeometry, RopeScaling
from ggext.search.space import Point, Space

GEOMETRY = RopeGeometry(64, 64, 100000.0, "norm", 8192)
SPACE = Space(
    RopeScaling("yarn", factor=2.0, original_context=8192, context=16384),
    GEOMETRY,
    "llama",
)


def bowl(best: Point) -> Callable[[Point, int], list[float]]:
    """A loss that grows with the square of the distance from `best`, the same on every text."""

    def losses(point: Point, count: int) -> list[float]:
        distance = (
            (math.log(point.overshoot / best.overshoot) / 0.4) ** 2
            + ((point.last - best.last) / 4) ** 2
            + ((point.first - best.first) / 4) ** 2
            + (math.log(point.gain / best.gain) / 0.08) ** 2
        )
        return [0.05 + 0.1 * distance] * count

    return losses
