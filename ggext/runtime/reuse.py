"""How much of a text a cache has already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggext.runtime.memory.base import Gone


def in_common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), shorter)


def reusable(cached: Sequence[int], gone: Gone, wanted: Sequence[int]) -> tuple[int, int]:
    """Tokens of a cache, from which ``gone`` has left, that stay for the text `wanted`, and how
    many of that text they stand for: as many, and those that left in between."""
    start, count = gone.start, gone.count
    if gone.found_in(wanted) and wanted[:start] == cached[:start]:
        common = start + in_common(cached[start:], wanted[start + count :])
        if common > start:
            return common, common + count
    common = in_common(cached[:start] if count else cached, wanted)
    return common, common
