"""Copies of recurrent states in a kept cache, so that the next question need not begin where the
last answer ended: a template may leave the reasoning of earlier answers out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ggext.footprint.cache import CHECKPOINTS
from ggext.runtime.checked_state import StateError, check_copy
from ggext.runtime.window_copies import Checkpoint

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache


def copies_of(cache: Cache, room: int) -> list[Checkpoint]:
    """The latest copies that take at most ``room`` bytes together, in the order of the text, and
    none of the state before the last token, which is in the cells. Of windows none."""
    kept: list[Checkpoint] = []
    if not cache.checkpoints.recurrent:
        return kept
    for copy in reversed(cache.checkpoints.kept):
        room -= copy.data.nbytes
        if copy.count < len(cache.tokens) - 1 and room >= 0:
            kept.insert(0, copy)
    return kept


def described(copies: list[Checkpoint]) -> list[list[int]]:
    """For JSON: of each copy its tokens, its bytes, and whether a text is often cut there."""
    return [[copy.count, copy.data.nbytes, int(copy.likely)] for copy in copies]


def read_copies(
    saved: Any, tokens: int, read: Callable[[int, int], bytearray], at: int
) -> list[Checkpoint]:
    """What `described` tells, of a text of so many tokens. ``read``: from an offset on so many
    bytes; they begin ``at`` one. Raises StateError: it may be a stranger's."""
    import numpy as np

    copies = [] if saved is None else saved
    if (
        not isinstance(copies, list)
        or len(copies) > CHECKPOINTS
        or not all(_is_copy(copy) for copy in copies)
    ):
        raise StateError(f"the saved state has copies {copies!r:.60}")
    counts = [copy[0] for copy in copies]
    if counts and not all(a < b for a, b in pairwise([0, *counts, tokens - 1])):
        raise StateError(
            f"the saved state has copies after {counts} of {tokens} tokens"
        )
    checkpoints = []
    for count, size, likely in copies:
        data = np.frombuffer(read(at, size), np.uint8)
        if len(data) != size:
            raise StateError(f"the saved state ends before a copy of {size} bytes")
        check_copy(data, count)
        checkpoints.append(Checkpoint(0, count, data, bool(likely)))
        at += size
    return checkpoints


def _is_copy(copy: Any) -> bool:
    return (
        isinstance(copy, list)
        and len(copy) == 3
        and all(type(number) is int and number >= 0 for number in copy)
    )
