"""compress: when the context is full, only the tokens stay that stand out.

llama.cpp's cells hold every layer and head of a token, so a token stays or leaves as a whole. The
score is KeyDiff's (Park et al. 2025): how little a key, before rotation, is like the mean of its
head's keys. It needs no second reading of the text and no attention scores. Here the similarity is
standardized in each head, averaged over heads and layers, and then over neighbours, because a fact
is a run of tokens. (Published methods choose for each head, which this cache cannot.)

The tokens that stay close up after the first ones. They are counted as tokens that have left, for
the text in the cache is no longer whole; the most recent tokens are never touched. What leaves may
be kept as text outside of it, of which a question brings passages back (`retrieval`). Where layers
with a sliding window hold the last tokens alone, those of a window stay in all layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError, UsageError
from ggext.runtime.memory.base import Layout, Memory, require_movable
from ggext.runtime.memory.gone import Gone
from ggext.runtime.memory.retrieval import ANSWER, Retrieval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions
    from ggext.runtime.state import KvBlock

#: Tokens over which a score is averaged. SmolLM2, needles in a book, a quarter of 2,048 tokens:
#: benchmarks/results/memory.md.
_NEIGHBOURS = 9
#: The most recent tokens stay, so many at most: a question that is being read.
_RECENT = 64
#: Of the cells that stay those of a small window take one of so many at most.
_PART = 3
#: Cells whose keys are widened to float32 at a time.
_AT_ONCE = 1024


class Compress(Memory):
    """The first tokens, those that stood out, and the most recent. Raises ModelError for a cache
    whose keys cannot be moved."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options)
        require_movable(cache, options.when_full)
        self.sinks = options.sinks
        #: Cells between the first tokens and the window: of tokens that left the text.
        self.selected = 0
        self.retrieval: Retrieval | None = None
        #: Cells for passages that a question brings back.
        self.reserved = options.come_back(cache.n_ctx)
        if options.brings_back:
            self.retrieval = Retrieval(cache, options, self.reserved)
        self.size = cache.n_ctx - self.reserved
        self.evict = options.evict or max(self.size // 4, 1)
        self._recent = max(min(self.evict // 2, _RECENT), 1)
        #: Recent tokens of a small window, and of that of a question's beginning: what is chosen
        #: of older ones is not there any more in these layers.
        self._in_window = (cache.checkpoints.window + _RECENT) * cache.cells.small
        needed = self.sinks + self._recent + self.evict + 1 + self.reserved
        if needed > cache.n_ctx:
            raise UsageError(
                f"{options.when_full}: {self.sinks} sinks, {self._recent} recent tokens, "
                f"{self.reserved} reserved and {self.evict} that leave at once need a context of "
                f"{needed} tokens or more, not {cache.n_ctx}"
            )
        self.batch = min(cache.n_batch, self.evict)

    def make_room(self, count: int) -> bool:
        if len(self.cache.tokens) + self.selected + count > self.size:
            self.reduce(self.size - self.evict)
        return True

    def reduce(self, cells: int) -> None:
        """Leaves this many cells of the cache, or what the first and the most recent tokens take.
        Raises ModelError; the cache is empty then."""
        import numpy as np

        cache = self.cache
        start = self.sinks
        recent = max(self._recent, min(self._in_window, cells // _PART))
        end = max(len(cache.tokens) - recent, start)
        stays = max(cells - start - (len(cache.tokens) - end), 0)
        if self.selected + end - start <= stays:
            return
        try:
            if self.retrieval is not None:
                self.retrieval.leave()
            scores = self._scores()[: self.selected + end - start]
            chosen = np.sort(np.argsort(-scores, kind="stable")[:stays])
            self.gone.add(start, cache.tokens[start:end])
            with cache.whole():
                if self.retrieval is not None:
                    self.retrieval.keep(start, end)
                cache.condense(start, end, self.selected, chosen)
            self.selected = len(chosen)
        finally:
            if len(cache.tokens) < start:  # it was left in the middle: nothing is there
                self.forget()

    def read(self, tokens: Sequence[int], remaining: int) -> bool:
        if self.retrieval is None:
            return super().read(tokens, remaining)
        self.retrieval.leave()
        if not remaining and self.gone.count and not self.retrieval.question_tokens:
            # Passages leave when others must: better before the answer than in it.
            self._make_room_for(len(tokens) + min(ANSWER, self.evict))
        return self.retrieval.read(tokens, remaining)

    def _make_room_for(self, count: int) -> None:
        """For so many tokens, or as many as there can be next to the first and the most recent."""
        recent = max(self._recent, min(self._in_window, self.size // _PART))
        count = min(count, self.size - self.sinks - recent)
        if len(self.cache.tokens) + self.selected + count > self.size:
            self.reduce(self.size - count)

    def cut_cache(self, count: int) -> int:
        kept = super().cut_cache(count)
        if self.retrieval is not None:
            self.retrieval.cut(kept)
        return kept

    def forget(self) -> None:
        if self.gone.count:
            self.cache.remove(len(self.cache.tokens), -1)
        if self.retrieval is not None:
            self.retrieval.forget()
        self.selected = 0
        super().forget()

    def close(self) -> None:
        super().close()
        if self.retrieval is not None:
            self.retrieval.close()

    @property
    def forgotten(self) -> int:
        return self.retrieval.outside.ever_forgotten if self.retrieval else 0

    def account(self) -> dict[str, Any]:
        selected = {"selected": self.selected} if self.gone.count else {}
        return selected | (self.retrieval.account() if self.retrieval else {})

    def blocks_outside(self) -> Iterator[bytes]:
        return self.retrieval.saved() if self.retrieval else iter(())

    def layout(self, count: int, gone: Gone, account: Any) -> Layout:
        if not gone.count:
            return super().layout(count, gone, account)
        selected = account.get("selected") if isinstance(account, dict) else None
        if not (
            isinstance(selected, int) and 0 <= selected <= self.cache.n_ctx - count
        ):
            raise ModelError(
                "what it tells of the tokens that left the context is damaged"
            )
        between = range(self.sinks, self.sinks + selected)
        places = [*range(self.sinks), *range(between.stop, selected + count)]
        if self.retrieval is None:
            return Layout(places, sorted([*places, *between]))
        places, cells = self.retrieval.places(account, places)
        return Layout(places, sorted([*cells, *between]), 1)

    def resume(self, account: Any, blocks: Iterable[memoryview]) -> None:
        self.selected = account["selected"] if self.gone.count else 0
        if self.retrieval is not None:
            self.retrieval.resume(account, blocks, self.gone)

    def _scores(self) -> NDArray[np.float64]:
        """How much each cell after the first tokens stands out, (n_cells,)."""
        import numpy as np

        sums = sum(
            np.stack([_unit(keys).sum(axis=0) for keys in layers])
            for layers in self._upright()
        )
        means = _unit(np.asarray(sums))  # (n_layers, n_heads, head_dim)
        parts = [
            np.stack(
                [(_unit(k) * m).sum(axis=2) for k, m in zip(layers, means, strict=True)]
            )
            for layers in self._upright()
        ]
        alike = np.concatenate(parts, axis=1).astype(
            np.float64
        )  # (n_layers, n_cells, n_heads)
        alike -= alike.mean(axis=1, keepdims=True)
        alike /= alike.std(axis=1, keepdims=True) + 1e-9
        return _smoothed(-alike.mean(axis=(0, 2)), _NEIGHBOURS)

    def _upright(self) -> Iterator[list[NDArray[np.float32]]]:
        """Keys before rotation, (n_cells, n_heads, head_dim), of each layer that sees everything,
        some cells at a time."""
        rotation = self.cache.rotation()
        for block in self._blocks():
            yield rotation.upright(block, rotation.layers.whole)

    def _blocks(self) -> Iterator[KvBlock]:
        end = self.cache.next_position
        for first in range(self.sinks, end, _AT_ONCE):
            yield self.cache.take(first, min(first + _AT_ONCE, end))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors of the last axis, of length 1."""
    import numpy as np

    unit: NDArray[np.float32] = vectors / (
        np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9
    )
    return unit


def _smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Means over `width` neighbours each, the ends repeated."""
    import numpy as np

    around = np.pad(values, width // 2, mode="edge")
    means: NDArray[np.float64] = np.convolve(
        around, np.full(width, 1 / width), mode="valid"
    )
    return means
