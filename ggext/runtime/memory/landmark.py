"""landmark: the first tokens, a window of the most recent, and the passages that a question brings
back of the text that left (`ggext.runtime.memory.retrieval`; after InfLLM, Xiao et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ggext.runtime.memory.base import Layout, Window, require_movable
from ggext.runtime.memory.gone import Gone
from ggext.runtime.memory.retrieval import ANSWER, Retrieval

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions


class Landmark(Window):
    """Sinks, a window, and passages. Raises ModelError for a cache whose keys cannot be moved."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options, options.come_back(cache.n_ctx))
        require_movable(cache, options.when_full)
        self.retrieval = Retrieval(cache, options, self.reserved)

    def slide(self, start: int, end: int) -> bool:
        self.retrieval.leave()
        self.retrieval.keep(start, end)
        self.cache.drop(start, end)
        return True

    def read(self, tokens: Sequence[int], remaining: int) -> bool:
        self.retrieval.leave()
        if not remaining and self.gone.count and not self.retrieval.question_tokens:
            # Passages leave when the window slides: better before the answer than in it.
            most = self.size - self.sinks - self.evict - len(tokens)
            self.make_room(len(tokens) + max(min(most, ANSWER), 0))
        return self.retrieval.read(tokens, remaining)

    def cut_cache(self, count: int) -> int:
        kept = super().cut_cache(count)
        self.retrieval.cut(kept)
        return kept

    def forget(self) -> None:
        super().forget()
        self.retrieval.forget()

    def close(self) -> None:
        super().close()
        self.retrieval.close()

    @property
    def forgotten(self) -> int:
        return self.retrieval.outside.ever_forgotten

    def account(self) -> dict[str, Any]:
        return self.retrieval.account()

    def blocks_outside(self) -> Iterator[bytes]:
        return self.retrieval.saved()

    def layout(self, count: int, gone: Gone, account: Any) -> Layout:
        if not gone.count:
            return super().layout(count, gone, account)
        return Layout(*self.retrieval.places(account, range(count)), 1)

    def resume(self, account: Any, blocks: Iterable[memoryview]) -> None:
        self.retrieval.resume(account, blocks, self.gone)
