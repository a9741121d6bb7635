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

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.errors import ModelError, OutputError
from ggext.runtime.cell_types import F16, Q8_0, floats, holds_q8_0, row_bytes, rows_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Layers = Sequence[NDArray[np.float32]]
    #: ggml's type, and rows of bytes (n_tokens, row bytes).
    Keys = tuple[int, NDArray[np.uint8]]

#: Tokens ``start`` to ``end``, numbered as they left.
Run = tuple[int, int]

#: A token that is attended to comes back with so many on each side: a fact is a run of tokens.
_AROUND = 16
#: Tokens whose keys are widened to float32 at a time.
_AT_ONCE = 4096


@contextmanager
def _spill_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: {error.strerror or error}; what leaves the context is kept there: free some "
            "space, or name another folder"
        ) from None


class Outside:
    """Tokens outside the cache, in the order of the text. ``spill``: a folder for their keys, in
    files that go when this is closed."""

    def __init__(self, spill: Path | None = None) -> None:
        self._folder = None
        if spill is not None:
            with _spill_errors(spill):
                self._folder = tempfile.TemporaryDirectory(prefix="ggext-", dir=spill)
        self._tokens = array("i")
        #: Of tokens that left together, the keys of each layer that is looked through.
        self._parts: list[list[Keys]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of tokens and keys."""
        keys = sum(rows.nbytes for part in self._parts for _, rows in part)
        return keys + 4 * len(self._tokens)

    def add(self, tokens: Sequence[int], layers: Layers) -> None:
        """Tokens, and their keys before rotation, (n_tokens, n_heads, head_dim), of each layer that
        is looked through. Raises ModelError for keys that are no numbers."""
        kept = [(_kind(keys), keys) for keys in layers]
        self._append(tokens, [(kind, rows_of(kind, keys)) for kind, keys in kept])

    def _append(self, tokens: Iterable[int], part: list[Keys]) -> None:
        if self._folder is not None:
            path = Path(self._folder.name, str(len(self._parts)))
            with _spill_errors(path):
                path.unlink(missing_ok=True)  # of a text before
                part = _mapped(part, path)
        self._parts.append(part)
        self._tokens.extend(tokens)

    def tokens(self, runs: Iterable[Run]) -> list[int]:
        """The tokens of the runs."""
        return [token for start, end in runs for token in self._tokens[start:end]]

    def find(self, queries: Layers, count: int) -> tuple[Run, ...]:
        """Runs of at most `count` tokens in all, around those that the queries attend to most.
        ``queries``: of each layer that is looked through, before rotation,
        (n_tokens, n_heads, head_dim)."""
        return _united(_runs(self._attention(queries), count))

    def _attention(self, queries: Layers) -> NDArray[np.float32]:
        """The logarithm of the largest share of attention that a query of a head pays to each
        token, (n_tokens,), where it sees all of them and nothing else."""
        import numpy as np

        most = np.full(len(self), -np.inf, np.float32)
        for kept, asked in enumerate(queries):
            total = np.float32(-np.inf)
            for scores in self._scores(kept, asked):
                peak = scores.max(axis=2, keepdims=True)
                sums = np.log(np.exp(scores - peak).sum(axis=2, keepdims=True)) + peak
                total = np.logaddexp(total, sums)
            at = 0
            for scores in self._scores(kept, asked):
                part = most[at : at + scores.shape[2]]
                np.maximum(part, (scores - total).max(axis=(0, 1)), out=part)
                at += scores.shape[2]
        return most

    def _scores(
        self, kept: int, queries: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """Products of queries and keys, (n_kv_heads, n_queries, n_tokens), some tokens at a
        time."""
        import numpy as np

        tokens, _, size = queries.shape
        for part in self._parts:
            kind, rows = part[kept]
            for first in range(0, len(rows), _AT_ONCE):
                keys = floats(kind, rows[first : first + _AT_ONCE])
                keys = keys.reshape(len(keys), -1, size)
                by_head = keys.transpose(1, 2, 0)
                grouped = queries.reshape(tokens, len(by_head), -1, size)
                asked = grouped.transpose(1, 0, 2, 3).reshape(len(by_head), -1, size)
                yield (asked / np.float32(np.sqrt(size)) @ by_head).astype(
                    np.float32, copy=False
                )

    def saved(self) -> bytes:
        """All of it, for `restore`."""
        layers = zip(*self._parts, strict=True)
        keys = (rows.tobytes() for layer in layers for _, rows in layer)
        return b"".join([self._tokens.tobytes(), *keys])

    def restore(self, data: memoryview, count: int, example: Layers) -> None:
        """Fills it with the `count` tokens that `saved` returned. ``example``: keys of a token of
        the cache, of each layer that is looked through. Raises ModelError for anything else."""
        import numpy as np

        kinds = [_kind(keys) for keys in example]
        widths = [
            row_bytes(kind, keys[0].size)
            for kind, keys in zip(kinds, example, strict=True)
        ]
        if len(data) != count * (4 + sum(widths)):
            raise ModelError(
                f"the text that left the context has {len(data)} bytes for {count} tokens"
            )
        tokens = array("i")
        at = 4 * count
        tokens.frombytes(data[:at])
        part: list[Keys] = []
        for kind, width in zip(kinds, widths, strict=True):
            rows = np.frombuffer(data, np.uint8, count * width, at)
            part.append((kind, rows.reshape(count, width).copy()))
            at += count * width
        self._append(tokens, part)

    def clear(self) -> None:
        """Forgets all."""
        self._parts = []
        self._tokens = array("i")

    def close(self) -> None:
        """Forgets all, and removes its files."""
        self.clear()
        if self._folder is not None:
            self._folder.cleanup()


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


def _mapped(part: list[Keys], path: Path) -> list[Keys]:
    """The same keys in a file, read as they are needed."""
    import numpy as np

    with path.open("xb") as file:
        for _, rows in part:
            file.write(np.ascontiguousarray(rows).data)
    data = np.memmap(path, np.uint8, "r")
    at = 0
    mapped: list[Keys] = []
    for kind, rows in part:
        mapped.append((kind, data[at : at + rows.size].reshape(rows.shape)))
        at += rows.size
    return mapped
