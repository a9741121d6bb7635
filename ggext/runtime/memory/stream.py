"""stream: the first tokens and a window of the most recent ones (StreamingLLM, Xiao et al. 2023).

A key stands at its place in the cache, not in the text. When the window is full a quarter of it
leaves at once and the rest moves down, by ggext's own rotation (``rotation.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggext.runtime.memory.base import Window, require_movable

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions


class Stream(Window):
    """Sinks and a window. Raises ModelError for a cache whose keys cannot be moved."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options)
        require_movable(cache, options.when_full)

    def slide(self, start: int, end: int) -> bool:
        self.cache.drop(start, end)
        return True
