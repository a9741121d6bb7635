"""Cells that left a cache, in host memory or in a folder, and the look-up among them: the one place
where it is computed which of them a question asks for.

Keys are kept before rotation, so that a query before rotation can be held against all of them, and
each can come back at any position. What comes back are runs of tokens around those that any query
of any head attends to most, among all that left. Measured on SmolLM2-135M with needles in a real
book (benchmarks/results/memory.md): 64 cells then hold the needle each time; with 8 keys that stand
for a block of 128, as InfLLM has, 256 cells hold it in 41 of 100. The latter half of the layers is
enough, and every second of those.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.errors import ModelError, OutputError
from ggext.runtime import state
from ggext.runtime.cell_types import Q8_0, floats, holds_q8_0, rows_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.rotation import KeyRotation
    from ggext.runtime.state import KvBlock, StateForm

    Layers = list[NDArray[np.float32]]

#: Cells ``start`` to ``end``, numbered as they left.
Run = tuple[int, int]

#: Cells that leave together are a multiple of this, the unit in which they are saved.
GRAIN = 16
#: A token that is attended to comes back with so many on each side: a fact is a run of tokens.
_AROUND = 16
#: Cells whose keys are widened to float32 at a time.
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
    """Cells outside the cache, numbered as they left. ``quantized``: kept as q8_0, else in the
    cache's own type. ``spill``: a folder for them, in files that go when this is closed."""

    def __init__(self, *, quantized: bool, spill: Path | None) -> None:
        self._quantized = quantized
        self._folder = None
        if spill is not None:
            with _spill_errors(spill):
                self._folder = tempfile.TemporaryDirectory(prefix="ggext-", dir=spill)
        self._parts: list[KvBlock] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(part.nbytes for part in self._parts)

    def add(self, block: KvBlock, rotation: KeyRotation) -> None:
        """Cells as they are taken from the cache. Raises ModelError for values that are no
        numbers."""
        self._append(self._kept(block, rotation))

    def _kept(self, block: KvBlock, rotation: KeyRotation) -> KvBlock:
        """The cells as they are kept: keys before rotation, values not transposed."""
        form = block.form
        keys = [rows.reshape(len(block), -1) for rows in rotation.upright(block)]
        kinds = [
            self._kind(kind, rows.shape[1])
            for kind, rows in zip(form.key_types, keys, strict=True)
        ]
        values = [
            self._value(*row)
            for row in zip(form.value_types, block.values, strict=True)
        ]
        return replace(
            block,
            keys=tuple(map(rows_of, kinds, keys)),
            values=tuple(rows for _, rows in values),
            form=replace(
                form,
                transposed=False,
                key_types=tuple(kinds),
                value_types=tuple(kind for kind, _ in values),
            ),
        )

    def _value(
        self, kind: int, rows: NDArray[np.uint8]
    ) -> tuple[int, NDArray[np.uint8]]:
        if not self._quantized or kind == Q8_0:
            return kind, rows
        numbers = floats(kind, rows)
        kept = self._kind(kind, numbers.shape[1])
        return kept, rows_of(kept, numbers)

    def _kind(self, kind: int, width: int) -> int:
        return Q8_0 if self._quantized and holds_q8_0(width) else kind

    def _append(self, part: KvBlock) -> None:
        if self._folder is not None:
            path = Path(self._folder.name, str(len(self._parts)))
            with _spill_errors(path):
                path.unlink(missing_ok=True)  # of a text before
                part = _mapped(part, path)
        self._parts.append(part)
        self._ends.append(len(self) + len(part))

    def placed(
        self, runs: Iterable[Run], first: int, form: StateForm, rotation: KeyRotation
    ) -> KvBlock:
        """The cells of the runs, in the order in which they left, for positions from `first` on of
        a cache of this form."""
        import numpy as np

        parts = [
            self._parts[index].cells(slice(start, end))
            for index, start, end in self._slices(sorted(runs))
        ]
        block = state.joined(parts)
        places = np.arange(first, first + len(block), dtype=np.int32)
        keys = map(floats, block.form.key_types, block.keys)
        values = [
            rows if have == wanted else rows_of(wanted, floats(have, rows))
            for have, wanted, rows in zip(
                block.form.value_types, form.value_types, block.values, strict=True
            )
        ]
        turned = rotation.placed([*keys], places, form.key_types)
        return replace(
            block, positions=places, keys=turned, values=tuple(values), form=form
        )

    def _slices(self, runs: Iterable[Run]) -> Iterator[tuple[int, int, int]]:
        """Runs as slices of the parts that they go through."""
        for start, end in runs:
            while start < end:
                index = bisect_right(self._ends, start)
                before = self._ends[index] - len(self._parts[index])
                stop = min(end, self._ends[index])
                yield index, start - before, stop - before
                start = stop

    def find(self, queries: Layers, count: int) -> tuple[Run, ...]:
        """Runs of at most `count` cells in all, those that the queries attend to most first.
        ``queries``: of each layer, before rotation, (n_tokens, n_heads, head_dim)."""
        return _runs(self._attention(queries), count)

    def _attention(self, queries: Layers) -> NDArray[np.float32]:
        """The logarithm of the largest share of attention that a query of a head pays to each cell,
        (n_cells,), where it sees all of them and nothing else."""
        import numpy as np

        most = np.full(len(self), -np.inf, np.float32)
        for layer in range(len(queries) // 2, len(queries), 2):
            total = np.float32(-np.inf)
            for scores in self._scores(layer, queries[layer]):
                peak = scores.max(axis=2, keepdims=True)
                sums = np.log(np.exp(scores - peak).sum(axis=2, keepdims=True)) + peak
                total = np.logaddexp(total, sums)
            at = 0
            for scores in self._scores(layer, queries[layer]):
                part = most[at : at + scores.shape[2]]
                np.maximum(part, (scores - total).max(axis=(0, 1)), out=part)
                at += scores.shape[2]
        return most

    def _scores(
        self, layer: int, queries: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """Products of queries and keys, (n_kv_heads, n_queries, n_cells), some cells at a time."""
        import numpy as np

        tokens, _, size = queries.shape
        for part in self._parts:
            kind = part.form.key_types[layer]
            rows = part.keys[layer]
            for first in range(0, len(part), _AT_ONCE):
                keys = floats(kind, rows[first : first + _AT_ONCE])
                by_head = keys.reshape(len(keys), -1, size).transpose(1, 2, 0)
                grouped = queries.reshape(tokens, len(by_head), -1, size)
                asked = grouped.transpose(1, 0, 2, 3).reshape(len(by_head), -1, size)
                yield (asked / np.float32(np.sqrt(size)) @ by_head).astype(
                    np.float32, copy=False
                )

    def saved(self) -> Iterator[bytes]:
        """All cells as llama.cpp would write them, `GRAIN` at a time."""
        import numpy as np

        for index, part in enumerate(self._parts):
            before = self._ends[index] - len(part)
            for first in range(0, len(part), GRAIN):
                cells = part.cells(slice(first, first + GRAIN))
                places = np.arange(len(cells), dtype=np.int32) + before + first
                yield state.build(replace(cells, positions=places), 1)

    def restore(
        self, blocks: Iterable[memoryview], like: KvBlock, rotation: KeyRotation
    ) -> None:
        """Fills it with what `saved` returned. ``like``: a cell of the cache. Raises ModelError for
        anything else."""
        example = self._kept(like, rotation)
        parts: list[KvBlock] = []
        for index, data in enumerate(blocks):
            part = state.parse(data)
            places = [*range(index * GRAIN, (index + 1) * GRAIN)]
            if part.positions.tolist() != places or not part.is_like(example):
                raise ModelError(
                    f"cells that left the context are none of this cache, {GRAIN} at a time"
                )
            parts.append(part)
        if parts:
            self._append(state.joined(parts))

    def clear(self) -> None:
        """Forgets all."""
        self._parts = []
        self._ends = []

    def close(self) -> None:
        """Forgets all, and removes its files."""
        self.clear()
        if self._folder is not None:
            self._folder.cleanup()


def _runs(scores: NDArray[np.float32], count: int) -> tuple[Run, ...]:
    """Runs of at most `count` cells around the highest scores, the highest first."""
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
    """At most `width` cells around one that is free, as far as those next to it are free too."""
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


def united(choices: Iterable[Iterable[Run]], room: int) -> tuple[Run, ...]:
    """The cells of all runs in ascending order, neighbours made one; of runs that overlap each cell
    once, and of more than `room` cells the first."""
    cells: set[int] = set()
    for start, end in chain.from_iterable(choices):
        free = (cell for cell in range(start, end) if cell not in cells)
        cells.update([*islice(free, room - len(cells))])
    runs: list[Run] = []
    for cell in sorted(cells):
        if runs and runs[-1][1] == cell:
            runs[-1] = (runs[-1][0], cell + 1)
        else:
            runs.append((cell, cell + 1))
    return tuple(runs)


def _mapped(part: KvBlock, path: Path) -> KvBlock:
    """The same cells in a file, read as they are needed."""
    import numpy as np

    arrays = (*part.keys, *part.values)
    with path.open("xb") as file:
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
    data = np.memmap(path, np.uint8, "r")
    at = 0
    views = []
    for array in arrays:
        views.append(data[at : at + array.size].reshape(array.shape))
        at += array.size
    layers = len(part.keys)
    return replace(part, keys=tuple(views[:layers]), values=tuple(views[layers:]))
