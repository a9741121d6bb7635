"""landmark: blocks that left come back when they are asked for (after InfLLM, Xiao et al. 2024; no
training).

Evicted blocks go to host memory, or to disk, each with a few representative keys a layer: those
that stand out most from the block's mean, all before rotation. (With the mean alone 7 of 40
questions were answered on the embedded model, and 40 with these.) The current queries, before
rotation too, attend to all representatives; the blocks that any query of any head attends to most
stand between the first tokens and the window, at positions that are kept free for them, until the
next comparison. llama.cpp shares cells across layers, so one choice serves all of them.

The last chunk of a prompt is evaluated twice where its own queries ask for other blocks than are
there; chunks before it find the blocks that the chunk before asked for, and an answer is looked at
every few tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError, OutputError
from ggext.runtime import state
from ggext.runtime.memory.base import Gone, Layout, Window, require_movable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions
    from ggext.runtime.state import KvBlock

    Layers = list[NDArray[np.float32]]

_EVERY = 16  # tokens of an answer between two comparisons
_QUERIES = 32  # of a chunk, its last ones, that are compared
_REPRESENTATIVES = 8  # keys of a block that stand for it


class Landmark(Window):
    """Sinks, blocks that came back, and a window. Raises ModelError for a cache whose keys cannot
    be moved."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options, options.retrieved * options.block)
        require_movable(cache, options.when_full)
        self.fetched: tuple[int, ...] = ()
        self._store = _Store(options.spill)
        self._wanted: tuple[int, ...] = ()
        self._written = 0

    def slide(self, start: int, end: int) -> bool:
        for block in self.blocks(start, end):
            self._keep(block)
        self.cache.drop(start, end, to=self.sinks + self.reserved)
        return True

    def read(self, tokens: Sequence[int], *, last: bool) -> bool:
        if not self._store:
            return self.cache.append(tokens)
        before = len(self.cache.tokens)
        self._fetch(self._wanted)
        if not self._watched(tokens):
            return False
        if last and self._wanted != self.fetched:
            self.cache.cut(before)
            self._fetch(self._wanted)
            return self.cache.append(tokens)
        return True

    def write(self, token: int) -> bool:
        self._written += 1
        if not self._store or self._written % _EVERY:
            return self.cache.append_one(token)
        self._fetch(self._wanted)
        return self._watched([token])

    def forget(self) -> None:
        super().forget()
        self.fetched = self._wanted = ()
        self._store.clear()

    def close(self) -> None:
        self._store.close()

    def account(self) -> dict[str, Any]:
        if not self._store:
            return {}
        return {
            "fetched": [*self.fetched],
            "wanted": [*self._wanted],
            "written": self._written,
        }

    def blocks_outside(self) -> Iterator[bytes]:
        for index in range(len(self._store)):
            yield state.build(self._store.block(index), 1)

    def layout(self, count: int, gone: Gone, account: Any) -> Layout:
        if not gone.count:
            return super().layout(count, gone, account)
        size, there = self.options.block, account if isinstance(account, dict) else {}
        blocks = gone.count // size
        chosen = [there.get(name) for name in ("fetched", "wanted")]
        written = there.get("written")
        counted = isinstance(written, int) and written >= 0 and gone.count % size == 0
        if not (
            counted
            and all(
                _are_some(indices, blocks, self.options.retrieved) for indices in chosen
            )
        ):
            raise ModelError(
                "what it tells of the blocks that left the context is damaged"
            )
        behind = range(self.sinks + self.reserved, self.reserved + count)
        fetched = range(self.sinks, self.sinks + size * len(there["fetched"]))
        return Layout(
            [*range(self.sinks), *behind],
            [*range(self.sinks), *fetched, *behind],
            blocks,
        )

    def resume(self, account: Any, blocks: Iterable[memoryview]) -> None:
        of_this_cache = self.cache.take(0, 1)
        for data in blocks:
            block = state.parse(data)
            self._check(block, of_this_cache)
            self._keep(block)
        if self._store:
            self.fetched, self._wanted = (
                tuple(account["fetched"]),
                tuple(account["wanted"]),
            )
            self._written = account["written"]

    def _check(self, block: KvBlock, like: KvBlock) -> None:
        first = int(block.positions[0]) if len(block) else -1
        in_a_row = [*range(first, first + len(block))] == block.positions.tolist()
        if not (
            first >= 0
            and len(block) == self.options.block
            and in_a_row
            and block.is_like(like)
        ):
            raise ModelError(
                f"a block that left the context is none of {self.options.block} tokens of this "
                "cache"
            )

    def _keep(self, block: KvBlock) -> None:
        """A block that leaves, or had left, the cache."""
        self._store.add(
            block, [_outstanding(keys) for keys in self.cache.rotation().upright(block)]
        )

    def _watched(self, tokens: Sequence[int]) -> bool:
        """Evaluates tokens and finds the blocks that they ask for."""
        watcher = self.cache.queries
        with watcher.watching():
            if not self.cache.append(tokens):
                return False
        self._wanted = self._store.nearest(
            watcher.take(self.cache.rotation()), self.options.retrieved
        )
        return True

    def _fetch(self, wanted: tuple[int, ...]) -> None:
        """Puts the blocks into the positions kept free for them, in the order of the text."""
        import numpy as np

        if wanted == self.fetched:
            return
        with self.cache.whole():
            if self.fetched:
                self.cache.remove(self.sinks, self.sinks + self.reserved)
            self.fetched = ()
            block = state.joined([self._store.block(index) for index in wanted])
            places = np.arange(self.sinks, self.sinks + len(block), dtype=np.int32)
            self.cache.put(self.cache.rotation().moved(block, places))
        self.fetched = wanted


def _are_some(indices: Any, count: int, most: int) -> bool:
    """Whether these are at most `most` of `count` blocks, in the order of the text."""
    return (
        isinstance(indices, list)
        and len(indices) <= most
        and all(isinstance(index, int) and 0 <= index < count for index in indices)
        and indices == sorted(set(indices))
    )


@contextmanager
def _spill_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: {error.strerror or error}; blocks that left the context are kept there: free "
            "some space, or name another folder"
        ) from None


class _Store:
    """Blocks outside the cache, and a representative key of each layer and block."""

    def __init__(self, spill: Path | None) -> None:
        self._folder = None
        if spill is not None:
            with _spill_errors(spill):
                self._folder = tempfile.TemporaryDirectory(prefix="ggext-", dir=spill)
        self._blocks: list[KvBlock | Path] = []
        self._representatives: list[Layers] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: KvBlock, representative: Layers) -> None:
        kept: KvBlock | Path = block
        if self._folder is not None:
            kept = Path(self._folder.name, str(len(self._blocks)))
            with _spill_errors(kept):
                kept.write_bytes(state.build(block, 1))
        self._representatives.append(representative)
        self._blocks.append(kept)

    def block(self, index: int) -> KvBlock:
        block = self._blocks[index]
        if not isinstance(block, Path):
            return block
        with _spill_errors(block):
            return state.parse(block.read_bytes())

    def nearest(self, queries: Layers, count: int) -> tuple[int, ...]:
        """The `count` blocks most like the queries, in the order of the text."""
        import numpy as np

        scores = np.zeros(len(self))
        for layer, rows in enumerate(queries):
            keys = np.stack(
                [representatives[layer] for representatives in self._representatives]
            )
            found = _attention(rows[-_QUERIES:], keys).max(axis=(0, 1))
            scores += (found - found.mean()) / (found.std() or 1.0)
        return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))

    def clear(self) -> None:
        self._blocks, self._representatives = [], []

    def close(self) -> None:
        self.clear()
        if self._folder is not None:
            self._folder.cleanup()


def _outstanding(keys: NDArray[np.float32]) -> NDArray[np.float32]:
    """The keys of each head, (n_cells, n_heads, head_dim), that are farthest from their mean."""
    import numpy as np

    far = np.linalg.norm(keys - keys.mean(axis=0), axis=2)
    chosen = np.argsort(-far, axis=0, kind="stable")[:_REPRESENTATIVES]
    return np.take_along_axis(keys, chosen[:, :, None], axis=0)


def _attention(
    queries: NDArray[np.float32], keys: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The share of attention that each query of each head, (n_tokens, n_heads, head_dim), pays to
    each block's keys, (n_blocks, n_keys, n_kv_heads, head_dim): (n_tokens, n_heads, n_blocks)."""
    import numpy as np

    blocks, per_block, kv_heads, size = keys.shape
    tokens, heads, _ = queries.shape
    by_head = queries.reshape(tokens, kv_heads, heads // kv_heads, size).transpose(
        1, 0, 2, 3
    )
    by_head = by_head.reshape(kv_heads, -1, size) / np.float32(np.sqrt(size))
    flat = keys.transpose(2, 0, 1, 3).reshape(kv_heads, blocks * per_block, size)
    weights = np.stack(
        [ours @ theirs.T for ours, theirs in zip(by_head, flat, strict=True)]
    )
    weights -= weights.max(axis=2, keepdims=True)
    np.exp(weights, out=weights)
    shares: NDArray[np.float32] = weights.reshape(kv_heads, -1, blocks, per_block).sum(
        axis=3
    ) / weights.sum(axis=2, keepdims=True)
    return (
        shares.reshape(kv_heads, tokens, -1, blocks)
        .transpose(1, 0, 2, 3)
        .reshape(tokens, heads, blocks)
    )
