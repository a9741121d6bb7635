"""compress: when the context is full, only the tokens stay that stand out.

llama.cpp's cells hold every layer and head of a token, so a token stays or leaves as a whole. The
score is KeyDiff's (Park et al. 2025): how little a key, before rotation, is like the mean of its
head's keys. It needs no second reading of the text and no attention scores. Here the similarity is
standardized in each head, averaged over heads and layers, and then over neighbours, because a fact
is a run of tokens. (Published methods choose for each head, which this cache cannot.)

A long text is read in pieces and chosen from again and again. What stayed is no sample of it: the
mean is that of every key that was read, not of those that are there. And what closed up stands next
to strangers: a score is averaged over neighbours once, when a token is first chosen from, and only
follows the mean as that moves. So reading in pieces keeps what one choice from the whole text would
keep, nearly (benchmarks/results/memory.md).

The tokens that stay close up after the first ones. They are counted as tokens that have left, for
the text in the cache is no longer whole; the most recent tokens are never touched. What leaves may
be kept as text outside of it, of which a question brings passages back (`retrieval`). Where layers
with a sliding window hold the last tokens alone, those of a window stay in all layers.
"""

from __future__ import annotations

import math
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

#: A score is averaged over neighbours that weigh less the farther they are, as in a normal
#: distribution with this standard deviation in tokens: as wide as nine that weigh the same, which
#: drown facts of six tokens. benchmarks/results/memory.md.
_DEVIATION = 2.5
#: The most recent tokens stay, so many at most: a question that is being read. More of them would
#: help what follows and cost answers: benchmarks/results/memory.md.
_RECENT = 64
#: Of the cells that stay those of a small window take one of so many at most.
_PART = 3
#: One of so many cells leaves at once, by itself: as many stand empty for half of the time.
_LEAVES = 8
#: Cells whose keys are widened to float32 at a time.
_AT_ONCE = 1024


class Compress(Memory):
    """The first tokens, those that stood out, and the most recent. Raises ModelError for a cache
    whose keys cannot be moved."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options)
        require_movable(cache, options.when_full)
        self.sinks = options.sinks
        self._reset()
        self.retrieval: Retrieval | None = None
        #: Cells for passages that a question brings back.
        self.reserved = options.come_back(cache.n_ctx)
        if options.brings_back:
            self.retrieval = Retrieval(cache, options, self.reserved)
        self.size = cache.n_ctx - self.reserved
        self.evict = options.evict or max(self.size // _LEAVES, 1)
        # What a question asks back is found by the whole of it.
        recent = self.evict if self.retrieval else self.evict // 2
        self._recent = max(min(recent, _RECENT), 1)
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

    def _reset(self) -> None:
        """Nothing has left the text."""
        import numpy as np

        #: Of each cell between the first tokens and the window, which are of tokens that left the
        #: text: how much it stands out, and how much by itself, without neighbours, (n_cells,).
        self.scores = self.own = np.zeros(0)
        #: The sum of the keys of all tokens that left, each before rotation and of length 1,
        #: (n_layers, n_heads, head_dim).
        self.total: NDArray[np.float64] = np.zeros(())

    @property
    def selected(self) -> int:
        """Cells between the first tokens and the window."""
        return len(self.scores)

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
        end = max(len(cache.tokens) - self._recent_of(cells), start)
        stays = max(cells - start - (len(cache.tokens) - end), 0)
        if self.selected + end - start <= stays:
            return
        try:
            if self.retrieval is not None:
                self.retrieval.leave()
            window = start + self.selected
            total = self.total + self._sum(window, window + end - start)
            stay = self._sum(window + end - start, cache.next_position)
            scores, own = self._scores(total + stay)
            leaving = scores[: self.selected + end - start]
            chosen = np.sort(np.argsort(-leaving, kind="stable")[:stays])
            self.gone.add(start, cache.tokens[start:end])
            with cache.whole():
                if self.retrieval is not None:
                    self.retrieval.keep(start, end)
                cache.condense(start, end, self.selected, chosen)
            self.scores, self.own, self.total = scores[chosen], own[chosen], total
        finally:
            if len(cache.tokens) < start:  # it was left in the middle: nothing is there
                self.forget()

    def read(self, tokens: Sequence[int], remaining: int) -> bool:
        if self.retrieval is None:
            return super().read(tokens, remaining)
        self.retrieval.leave()
        if not remaining and self.gone.count and not self.retrieval.question_tokens:
            # Passages leave when others must: better before the answer than in it.
            self._make_room_for(len(tokens) + min(ANSWER, self.size // 4))
        return self.retrieval.read(tokens, remaining)

    def _recent_of(self, cells: int) -> int:
        """The most recent tokens, which stay among so many cells."""
        return max(self._recent, min(self._in_window, cells // _PART))

    def _make_room_for(self, count: int) -> None:
        """For so many tokens, or as many as there can be next to the first and the most recent."""
        count = min(count, self.size - self.sinks - self._recent_of(self.size))
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
        self._reset()
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
        if self.gone.count:
            outside = self.retrieval.saved() if self.retrieval else ()
            own = (self.scores, self.own, self.total)
            yield b"".join([*(part.astype("<f8").tobytes() for part in own), *outside])

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
            return Layout(places, sorted([*places, *between]), 1)
        places, cells = self.retrieval.places(account, places)
        return Layout(places, sorted([*cells, *between]), 1)

    def resume(self, account: Any, blocks: Iterable[memoryview]) -> None:
        self._reset()
        # One block, where tokens have left.
        rest = [self._resume(account["selected"], block) for block in blocks]
        if self.retrieval is not None:
            self.retrieval.resume(account, rest, self.gone)
        elif any(map(len, rest)):
            raise ModelError("what it tells of the keys that were read is too long")

    def _resume(self, selected: int, block: memoryview) -> memoryview:
        """Takes what this policy keeps from a stranger's block; what is after it. Raises
        ModelError."""
        import numpy as np

        (first,) = self._upright(0, 1)
        shape = np.stack(first)[:, 0].shape
        count = 2 * selected + math.prod(shape)
        if len(block) < 8 * count:
            raise ModelError("what it tells of the keys that were read is too short")
        values = np.frombuffer(block, "<f8", count).astype(np.float64)
        # No sum of unit keys is longer than their number, no standardized value of n above the root
        # of n, and no score has changed more often than tokens left.
        if not (np.abs(values) <= 2 * self.cache.n_ctx * self.gone.count).all():
            raise ModelError("what it tells of the keys that were read is damaged")
        self.scores, self.own, total = np.split(values, [selected, 2 * selected])
        self.total = total.reshape(shape)
        return block[8 * count :]

    def _sum(self, first: int, last: int) -> NDArray[np.float64]:
        """The sum of the keys at positions `first` to `last`, each before rotation and of length 1,
        (n_layers, n_heads, head_dim)."""
        import numpy as np

        sums = np.zeros(())
        for layers in self._upright(first, last):
            sums = sums + np.stack(
                [_unit(keys).sum(axis=0, dtype=np.float64) for keys in layers]
            )
        return sums

    def _scores(
        self, sums: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How much each cell after the first tokens stands out, where ``sums`` is the sum of all
        keys that were read, and how much by itself, (n_cells,) each."""
        import numpy as np

        own = self._unlike(sums)
        before, new = np.split(own, [self.selected])
        # The mean has moved much the same way for what was read at the same time.
        change = _smoothed(before - self.own)
        first = _smoothed(new)
        return np.concatenate([self.scores + change, first]), own

    def _unlike(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """How little the keys of each cell after the first tokens are like ``sums``, (n_cells,):
        standardized over the cells, the mean over heads and layers."""
        import numpy as np

        means = _unit(sums.astype(np.float32))
        parts = [
            np.stack(
                [(_unit(k) * m).sum(axis=2) for k, m in zip(layers, means, strict=True)]
            )
            for layers in self._upright(self.sinks, self.cache.next_position)
        ]
        alike = np.concatenate(parts, axis=1).astype(
            np.float64
        )  # (n_layers, n_cells, n_heads)
        alike -= alike.mean(axis=1, keepdims=True)
        alike /= alike.std(axis=1, keepdims=True) + 1e-9
        unlike: NDArray[np.float64] = -alike.mean(axis=(0, 2))
        return unlike

    def _upright(self, first: int, last: int) -> Iterator[list[NDArray[np.float32]]]:
        """Keys before rotation, (n_cells, n_heads, head_dim), of each layer that sees everything,
        at positions `first` to `last`, some cells at a time."""
        rotation = self.cache.rotation()
        for start in range(first, last, _AT_ONCE):
            block = self.cache.take(start, min(start + _AT_ONCE, last))
            yield rotation.upright(block, rotation.layers.whole)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors of the last axis, of length 1."""
    import numpy as np

    unit: NDArray[np.float32] = vectors / (
        np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9
    )
    return unit


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over neighbours, the ends repeated."""
    import numpy as np

    if not len(values):
        return values
    far = math.ceil(3 * _DEVIATION)
    weights = np.exp(-0.5 * (np.arange(-far, far + 1) / _DEVIATION) ** 2)
    around = np.pad(values, far, mode="edge")
    means: NDArray[np.float64] = np.convolve(
        around, weights / weights.sum(), mode="valid"
    )
    return means
