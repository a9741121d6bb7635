"""stream: the first tokens and a window of the most recent ones (StreamingLLM, Xiao et al. 2023).

A key stands at its place in the cache, not in the text. When the window is full a quarter of it leaves at
once and the rest moves down, by ggext's own rotation (``rotation.py``) for every file whose table it knows;
else, for files without a gain, by llama.cpp's shift. A file of neither kind is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggext.errors import ModelError
from ggext.runtime.memory.base import Window, why_not_movable

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions


class Stream(Window):
    """Sinks and a window. Raises ModelError for a file whose keys cannot be moved exactly."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options)
        reason = why_not_movable(cache)
        self._by_llama = bool(reason)
        if reason and not cache.shift_safe:
            raise ModelError(
                f"{cache.model.path}: --when-full stream moves cached keys, and that cannot be done exactly here: "
                f"{reason}; llama.cpp's own shift would apply the file's gain again: bake it with --encoding folded"
            )

    def slide(self, start: int, end: int) -> bool:
        self.cache.drop(start, end, by_llama=self._by_llama)
        return True
