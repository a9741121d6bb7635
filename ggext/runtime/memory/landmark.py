"""landmark: the first tokens, a window of the most recent, and what a question brings back of those
that left (`ggext.runtime.memory.retrieval`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime.memory.base import Gone, Layout, Window, require_movable
from ggext.runtime.memory.outside import GRAIN
from ggext.runtime.memory.retrieval import Retrieval

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions

_AT_ONCE = 1024  # cells that leave together through host memory


class Landmark(Window):
    """Sinks, cells that came back, and a window. Raises ModelError for a cache whose keys cannot be
    moved."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options, options.come_back(cache.n_ctx))
        require_movable(cache, options.when_full)
        self.retrieval = Retrieval(cache, options, self.reserved)

    def slide(self, start: int, end: int) -> bool:
        places = self.cache.positions
        for first in range(start, end, _AT_ONCE):
            last = min(first + _AT_ONCE, end) - 1
            self.retrieval.keep(self.cache.take(places[first], places[last] + 1))
        self.cache.drop(start, end, to=self.sinks + self.reserved)
        return True

    def read(self, tokens: Sequence[int], left: int) -> bool:
        return self.retrieval.read(tokens, left)

    def write(self, token: int) -> bool:
        return self.retrieval.write(token)

    def forget(self) -> None:
        super().forget()
        self.retrieval.forget()

    def close(self) -> None:
        self.retrieval.close()

    def account(self) -> dict[str, Any]:
        return self.retrieval.account()

    def blocks_outside(self) -> Iterator[bytes]:
        return self.retrieval.saved()

    def layout(self, count: int, gone: Gone, account: Any) -> Layout:
        if not gone.count:
            return super().layout(count, gone, account)
        came_back = self.retrieval.checked(account, gone.count)
        if account["left"] != gone.count or gone.count % GRAIN:
            raise ModelError(
                "what it tells of the cells that left the context is damaged"
            )
        after = range(self.sinks + self.reserved, self.reserved + count)
        first = [*range(self.sinks)]
        return Layout(
            [*first, *after], [*first, *came_back, *after], gone.count // GRAIN
        )

    def resume(self, account: Any, blocks: Iterable[memoryview]) -> None:
        self.retrieval.resume(account, blocks)
