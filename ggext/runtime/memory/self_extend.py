"""self-extend: everything stays; far tokens share positions in groups (Self-Extend, Jin et al.
2024).

The model meets no position beyond those that the file is made for: whenever they run out, the
oldest tokens that still have a position each are grouped, ``group`` to a position, and all after
them move down. The nearest half of the positions is never grouped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggext.runtime.memory.base import Memory, require_movable

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions


class SelfExtend(Memory):
    """Holds as many tokens as the cache has cells, on at most ``positions`` positions."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options)
        require_movable(cache, options.when_full)
        self.room = self.positions = min(cache.model.n_ctx_train, cache.n_ctx)
        self._near = max(self.positions // 2, 1)
        self._grouped = 0
        far = max(
            self.positions - self._near - options.group, 0
        )  # the last group may be incomplete
        self.limit = min(
            cache.n_ctx, max(self._near + far * options.group, self.positions)
        )
        self.batch = max(min(cache.n_batch, self.positions // 8), 1)

    def make_room(self, count: int) -> bool:
        while self.cache.next_position + count > self.positions and self._group(count):
            pass
        return True

    def _group(self, count: int) -> bool:
        """Groups as many of the oldest single tokens as it takes; False where none is left."""
        cache = self.cache
        group = self.options.group
        far = len(cache.tokens) - self._near + count - self._grouped
        over = cache.next_position + count - self.positions
        span = min(
            far // group * group,
            max(-(-over // (group - 1)) * group, self._near // 2 // group * group),
        )
        if span < group:
            return False
        start = cache.positions[self._grouped]
        places = [start + i // group for i in range(span)]
        freed = span - span // group
        places += [place - freed for place in cache.positions[self._grouped + span :]]
        with cache.whole():
            cache.move(self._grouped, places)
        self._grouped += span
        return True

    def cut(self, count: int) -> int:
        kept = super().cut(count)
        self._grouped = min(self._grouped, kept)
        return kept
