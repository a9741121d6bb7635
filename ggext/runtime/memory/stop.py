"""stop: everything stays, and a full context is an error that names the counts. The default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggext.errors import ContextFullError
from ggext.runtime.memory.base import Memory

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions


class Stop(Memory):
    """Nothing ever leaves."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options)
        self.limit = cache.n_ctx

    def make_room(self, count: int) -> bool:
        cache = self.cache
        if (used := len(cache.tokens)) + count > cache.n_ctx:
            raise ContextFullError(count, used, cache.n_ctx - used)
        return True
