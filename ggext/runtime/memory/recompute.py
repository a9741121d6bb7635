"""recompute: the same window as stream, its keys and values evaluated again from its tokens
whenever it slides.

The dense baseline of StreamingLLM, and the oracle for stream. Works with every file.
"""

from __future__ import annotations

from ggext.runtime.memory.base import Window


class Recompute(Window):
    """Sinks and a window, rebuilt."""

    def slide(self, start: int, end: int) -> bool:
        cache = self.cache
        kept = cache.tokens[:start] + cache.tokens[end:]
        cache.clear()
        return cache.append_all(kept)
