"""The text that left a cache, and the look-up in it: the one place where it is computed which of it
a question asks for.

Of each token its number is kept and its keys before rotation, of some layers
(`CachedLayers.looked_through`) and as q8_0: a fifteenth of what its cells took. The queries of a
question are held against all of them. Measured on SmolLM2-135M with needles in a real book
(benchmarks/results/memory.md): the 64 tokens that any query of any head attends to most hold the
needle each time; with 8 keys that stand for a block of 128, as InfLLM has, 256 hold it in 41 of
100.
"""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.errors import ModelError
from ggext.footprint.machine import free_memory
from ggext.gguf.writer import output_errors
from ggext.runtime.cell_types import F16, Q8_0, floats, holds_q8_0, row_bytes, rows_of
from ggext.runtime.memory.gone import Gone
from ggext.runtime.memory.rows import SPILL_FAILED, BlockFile, Rows
from ggext.runtime.products import piece

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Layers = Sequence[NDArray[np.float32]]

#: Tokens ``start`` to ``end``, numbered as they left.
Run = tuple[int, int]

#: A token that is attended to comes back with so many on each side: a fact is a run of tokens.
_AROUND = 16
#: Tokens of a block, whose keys are widened to float32 together.
_BLOCK = 4096
#: Where few tokens fit there are so many blocks, for a block is forgotten at a time.
_BLOCKS = 8
#: Bytes of a token's number.
_TOKEN = 4
#: What is kept takes one of so many bytes that are free.
_SHARE = 4


class Outside:
    """Tokens outside the cache, in the order of the text. ``most``: bytes of them at most, for
    which the oldest are forgotten; None: a quarter of what is free. ``spill``: a folder for their
    keys, in a file that no one else can open and that goes when this is closed.

    ``forgotten``: tokens of the text that cannot be brought back, and ``ever_forgotten`` how many,
    also of texts before.
    """

    def __init__(self, spill: Path | None = None, most: int | None = None) -> None:
        self._file = None if spill is None else BlockFile(spill)
        self._most = _share_of_free(spill) if most is None else most
        self._tokens = array("i")
        self._rows: Rows | None = None
        #: Of each layer that is looked through, ggml's type of its keys and their bytes in a row.
        self._kinds: list[tuple[int, slice]] = []
        self.forgotten = Gone()
        self.ever_forgotten = 0

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of tokens and keys."""
        return (self._rows.nbytes if self._rows else 0) + _TOKEN * len(self._tokens)

    def add(self, tokens: Sequence[int], layers: Layers) -> None:
        """Tokens, and their keys before rotation, (n_tokens, n_heads, head_dim), of each layer that
        is looked through. Raises ModelError for keys that are no numbers, OutputError."""
        import numpy as np

        keys = [rows_of(_kind(each), each) for each in layers]
        self._append(tokens, np.concatenate(keys, axis=1), self._made_for(layers))

    def _made_for(self, layers: Layers) -> Rows:
        """Where rows of such keys go."""
        if self._rows is None:
            widths = [row_bytes(_kind(keys), keys[0].size) for keys in layers]
            ends = [*accumulate(widths, initial=0)]
            self._kinds = [
                (_kind(keys), slice(start, end))
                for keys, (start, end) in zip(layers, pairwise(ends), strict=True)
            ]
            size = _BLOCK
            blocks = None
            if self._most is not None:
                tokens = max(self._most // (_TOKEN + ends[-1]), 1)
                size = min(max(tokens // _BLOCKS, 1), _BLOCK)
                blocks = tokens // size
            self._rows = Rows(ends[-1], size, blocks, self._file)
        return self._rows

    def _append(self, tokens: Iterable[int], keys: NDArray[np.uint8], to: Rows) -> None:
        self._tokens.extend(tokens)
        count = to.append(keys)
        self.forgotten.add(0, self._tokens[:count])
        self.ever_forgotten += count
        del self._tokens[:count]

    def tokens(self, runs: Iterable[Run]) -> list[int]:
        """The tokens of the runs."""
        return [token for start, end in runs for token in self._tokens[start:end]]

    def find(
        self, queries: Layers, count: int, stop: Callable[[], bool] = lambda: False
    ) -> tuple[Run, ...] | None:
        """Runs of at most `count` tokens in all, around those that the queries attend to most; None
        where `stop`, asked again and again, said so. ``queries``: of each layer that is looked
        through, before rotation, (n_tokens, n_heads, head_dim)."""
        attention = self._attention(queries, stop)
        return None if stop() else _united(_runs(attention, count))

    def _attention(
        self, queries: Layers, stop: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """The logarithm of the largest share of attention that a query of a head pays to each
        token, (n_tokens,), where it sees all of them and nothing else."""
        import numpy as np

        totals = [np.float32(-np.inf)] * len(self._kinds)
        for rows in takewhile(lambda _: not stop(), self._rows or ()):
            for kept, scores in enumerate(self._scores(rows, queries)):
                peak = scores.max(axis=(1, 3), keepdims=True)
                sums = np.exp(scores - peak).sum(axis=(1, 3), keepdims=True)
                totals[kept] = np.logaddexp(totals[kept], np.log(sums) + peak)
        most = np.full(len(self), -np.inf, np.float32)
        at = 0
        for rows in takewhile(lambda _: not stop(), self._rows or ()):
            part = most[at : at + len(rows)]
            for kept, scores in enumerate(self._scores(rows, queries)):
                shares = (scores - totals[kept]).max(axis=(0, 2)).ravel()
                np.maximum(part, shares[: len(rows)], out=part)
            at += len(rows)
        return most

    def _scores(
        self, rows: NDArray[np.uint8], queries: Layers
    ) -> Iterator[NDArray[np.float32]]:
        """Products of queries and keys of each layer, (n_kv_heads, n_pieces, n_queries, piece),
        -inf after the last token."""
        import numpy as np

        for (kind, columns), asking in zip(self._kinds, queries, strict=True):
            tokens, _, size = asking.shape
            keys = floats(kind, rows[:, columns]).reshape(len(rows), -1, size)
            heads = keys.shape[1]
            grouped = asking.reshape(tokens, heads, -1, size).transpose(1, 0, 2, 3)
            scaled = grouped.reshape(heads, 1, -1, size) / np.float32(np.sqrt(size))
            at_once = piece(scaled.shape[2] * size)
            rest = -len(keys) % at_once
            padded = np.pad(keys, ((0, rest), (0, 0), (0, 0)))
            pieces = padded.reshape(-1, at_once, heads, size).transpose(2, 0, 3, 1)
            scores = np.matmul(scaled, pieces, dtype=np.float32)
            scores[:, -1, :, at_once - rest :] = -np.inf
            yield scores

    def saved(self) -> Iterator[bytes]:
        """All of it, in parts, for `restore`."""
        yield self._tokens.tobytes()
        for _, columns in self._kinds:
            yield from (rows[:, columns].tobytes() for rows in self._rows or ())

    def restore(
        self, data: memoryview, count: int, example: Layers, forgotten: Gone
    ) -> None:
        """Fills it with the `count` tokens that `saved` returned, when others were ``forgotten``.
        ``example``: keys of a token of the cache, of each layer that is looked through. Raises
        ModelError for anything else, OutputError."""
        import numpy as np

        self.clear()
        to = self._made_for(example)
        widths = [columns.stop - columns.start for _, columns in self._kinds]
        if len(data) != count * (_TOKEN + sum(widths)):
            raise ModelError(
                f"the text that left the context has {len(data)} bytes for {count} tokens"
            )
        tokens = array("i")
        at = _TOKEN * count
        tokens.frombytes(data[:at])
        keys: list[NDArray[np.uint8]] = []
        for width in widths:
            rows = np.frombuffer(data, np.uint8, count * width, at)
            keys.append(rows.reshape(count, width))
            at += count * width
        self.forgotten = forgotten.copy()
        self._append(tokens, np.concatenate(keys, axis=1), to)

    def clear(self) -> None:
        """Forgets all."""
        self._rows = None
        self._tokens = array("i")
        self.forgotten = Gone()
        if self._file is not None:
            self._file.clear()

    def close(self) -> None:
        """Forgets all, and its file goes."""
        self._rows = None
        self._tokens = array("i")
        if self._file is not None:
            self._file.close()


def _share_of_free(spill: Path | None) -> int | None:
    """Bytes of the memory, or of the disk, that is free; None where the system does not say."""
    free = free_memory()
    if spill is not None:
        with output_errors(spill, SPILL_FAILED):
            free = shutil.disk_usage(spill).free
    return None if free is None else free // _SHARE


def _kind(keys: NDArray[np.float32]) -> int:
    """ggml's type in which keys, (n_tokens, n_heads, head_dim), are kept."""
    return Q8_0 if holds_q8_0(keys[0].size) else F16


def _runs(scores: NDArray[np.float32], count: int) -> tuple[Run, ...]:
    """Runs of at most `count` tokens around the highest scores, the highest first."""
    import numpy as np

    taken = np.zeros(len(scores), np.bool_)
    runs: list[Run] = []
    for center in np.argsort(-scores, kind="stable"):
        if count <= 0:
            break
        if taken[center]:
            continue
        start, end = _free_around(taken, int(center), min(count, 2 * _AROUND + 1))
        taken[start:end] = True
        runs.append((start, end))
        count -= end - start
    return tuple(runs)


def _free_around(taken: NDArray[np.bool_], center: int, width: int) -> Run:
    """At most `width` tokens around one that is free, as far as those next to it are free too."""
    start = center
    end = center + 1
    while end - start < width:
        before = start > 0 and center - start < _AROUND and not taken[start - 1]
        after = end < len(taken) and end - center <= _AROUND and not taken[end]
        if not (before or after):
            break
        start -= before
        end += after and end - start < width
    return start, end


def _united(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Runs that do not overlap in ascending order, neighbours made one."""
    joined: list[Run] = []
    for start, end in sorted(runs):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)
