"""Keys and values of cached tokens as bytes: what ``llama_state_seq_get_data`` writes, and only
here.

The format is llama.cpp's own and undocumented (``llama_kv_cache::state_write``): u32 magic, i32
sequence; then a section for each cache, of which a model with sliding windows has two: u32 streams;
u32 cells; per cell i32 position, u32 number of sequences, with M-RoPE three more i32
(``llama_kv_cell_ext``: an image's column and row, the token), the sequences' i32 ids; u32 whether
values are transposed, u32 layers; per layer i32 type, u64 row bytes, then the cells' rows of keys;
then the values (none with latent attention), either in the same way, or transposed: i32 type, u32
element bytes, u32 width, then width × cells elements. Little-endian. Every count is checked against
the bytes that are there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ggext.errors import ModelError
from ggext.llama_cpp_facts.limits import ELEMENT_BYTES, MAX_LAYERS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

#: The layers of which a block has cells: all, those that see everything, those with a window.
Part = Literal["all", "whole", "sliding"]

_MAX_ROW = 1 << 24
#: Of the section of a cache that has no cells: streams and cells.
_EMPTY = struct.pack("<II", 1, 0)
#: Bytes of the magic and the sequence.
HEAD_BYTES = 8


@dataclass(frozen=True)
class StateForm:
    """How a cache writes its cells."""

    # llama.cpp's number of the format.
    magic: int
    # Layers of each section.
    layers: tuple[int, ...]
    # Whether values are.
    transposed: bool
    # ggml's numbers, one a layer.
    key_types: tuple[int, ...]
    # The same.
    value_types: tuple[int, ...]
    # The layers that it has.
    part: Part = "all"


@dataclass(frozen=True)
class KvBlock:
    """Cached tokens. Keys are rotated by their positions, as they are in the cache. Layers come in
    the order of the state: with sliding windows those that see everything, then the others."""

    # int32 (n_cells,).
    positions: NDArray[np.int32]
    # Of each layer, uint8 (n_cells, row bytes).
    keys: tuple[Bytes, ...]
    # The same.
    values: tuple[Bytes, ...]
    form: StateForm

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def is_like(self, other: KvBlock) -> bool:
        """Whether both can be cells of one cache."""
        widths = (
            [array.shape[1] for array in (*block.keys, *block.values)]
            for block in (self, other)
        )
        return self.form == other.form and next(widths) == next(widths)

    def cells(self, chosen: Any) -> KvBlock:
        """The cells that a numpy index of the first axis picks, copied."""
        pick = (
            tuple(array[chosen].copy() for array in self.keys),
            tuple(array[chosen].copy() for array in self.values),
        )
        return replace(
            self, positions=self.positions[chosen].copy(), keys=pick[0], values=pick[1]
        )


def joined(blocks: Sequence[KvBlock]) -> KvBlock:
    """The cells of all blocks, one after the other; all of one form but for those without cells,
    which say nothing of theirs."""
    import numpy as np

    blocks = [block for block in blocks if len(block)] or blocks[:1]
    layers = range(len(blocks[0].keys))
    return replace(
        blocks[0],
        positions=np.concatenate([block.positions for block in blocks]),
        keys=tuple(np.concatenate([block.keys[i] for block in blocks]) for i in layers),
        values=tuple(
            np.concatenate([block.values[i] for block in blocks]) for i in layers
        ),
    )


@dataclass(frozen=True)
class Rows:
    """One layer's keys or values in a section."""

    # ggml's number of the type
    type: int
    # uint8 (n_cells, row bytes), or (width, n_cells, element bytes) where they are transposed
    data: Bytes


@dataclass(frozen=True)
class Section:
    """One cache's cells."""

    # int32 (n_cells, 3): position, number of sequences, sequence
    cells: NDArray[np.int32]
    transposed: bool
    keys: tuple[Rows, ...]
    # empty where there are none
    values: tuple[Rows, ...]


def sections(data: Any, *, extended: bool = False) -> tuple[int, list[Section]]:
    """llama.cpp's magic, and the sections of a state; arrays are views of ``data``. ``extended``:
    of a model with M-RoPE, whose cells have more than a position.

    Raises ValueError for anything but whole sections of one stream.
    """
    shift = 3 if extended else 0
    reader = _Reader(memoryview(data), shift)
    magic, _sequence = reader.unpack("Ii")
    result = [reader.section()]
    while reader.rest:
        result.append(reader.section())
    return magic, result


def leading_sections(
    data: Any, count: int, *, extended: bool = False
) -> tuple[list[Section], int]:
    """The first `count` sections of a state, after which others follow, and the byte after them.
    Raises ValueError as `sections`."""
    extra = 3 if extended else 0
    reader = _Reader(memoryview(data), extra)
    reader.unpack("Ii")
    result = [reader.section() for _ in range(count)]
    return result, len(data) - reader.rest


def parse(data: Any, part: Part = "all") -> KvBlock:
    """The cells of one sequence, in the order of their positions, of these layers: "sliding" where
    ``data`` has no others, "whole" the first section whatever follows. Raises ModelError for a
    cache of another form (of all layers, windows that do not hold every token; recurrent, M-RoPE,
    latent) and for any other bytes."""
    try:
        magic, result = sections(data)
        if part != "all":
            del result[1:]
        return _block(magic, result, part)
    except ValueError as error:
        raise ModelError(
            f"llama.cpp's state of a sequence has {error}: this model keeps its cache in a form "
            "that ggext cannot edit; use when_full='stop'"
        ) from None


def _block(magic: int, sections: Sequence[Section], part: Part) -> KvBlock:
    import numpy as np

    orders = [np.argsort(one.cells[:, 0], kind="stable") for one in sections]
    places = [one.cells[order, 0] for one, order in zip(sections, orders, strict=True)]
    if any(not np.array_equal(places[0], other) for other in places[1:]):
        counts = ", ".join(str(len(other)) for other in places)
        raise ValueError(f"sections of different cells ({counts})")
    parts = [_in_order(*both) for both in zip(sections, orders, strict=True)]
    keys = [rows for part, _ in parts for rows in part]
    values = [rows for _, part in parts for rows in part]
    form = StateForm(
        magic,
        tuple(len(part) for part, _ in parts),
        sections[0].transposed,
        tuple(rows.type for rows in keys),
        tuple(rows.type for rows in values),
        part,
    )
    return KvBlock(
        places[0],
        tuple(rows.data for rows in keys),
        tuple(rows.data for rows in values),
        form,
    )


def _in_order(
    section: Section, order: NDArray[np.intp]
) -> tuple[list[Rows], list[Rows]]:
    """A section's keys and values, copied, a cell's bytes together, the cells in this order."""
    if len(section.values) != len(section.keys):
        raise ValueError("no values")
    values = section.values
    if section.transposed:
        values = tuple(
            Rows(rows.type, rows.data.transpose(1, 0, 2).reshape(len(order), -1))
            for rows in values
        )
    both = [
        [Rows(rows.type, rows.data.take(order, axis=0)) for rows in part]
        for part in (section.keys, values)
    ]
    return both[0], both[1]


def build(block: KvBlock, sequence: int) -> bytes:
    """The bytes from which ``llama_state_seq_set_data`` restores the block. ``parse`` undoes it."""
    parts: list[Any] = [struct.pack("<Ii", block.form.magic, sequence)]
    first = 0
    for count in block.form.layers:
        parts += _section(block, sequence, first, first + count)
        first += count
    if block.form.part == "whole":
        parts.append(_EMPTY)
    return b"".join(parts)


def with_window(data: Bytes, window: int) -> Bytes:
    """A state whose second section has the last ``window`` cells at most, for a cache that holds no
    more; as it is where it is no such state."""
    import numpy as np

    try:
        magic, parts = sections(data)
        if len(parts) < 2 or len(parts[1].cells) <= window:
            return data
        whole = _block(magic, parts[:1], "whole")
        last = _block(magic, parts[1:], "sliding").cells(slice(-window, None))
    except ValueError:
        return data
    rest = b"".join(_section(last, 0, 0, len(last.keys)))
    return np.frombuffer(build(whole, 0)[: -len(_EMPTY)] + rest, np.uint8)


def _section(block: KvBlock, sequence: int, first: int, last: int) -> Iterator[Any]:
    """The bytes of layers `first` to `last`."""
    import numpy as np

    form = block.form
    cells = len(block)
    record = np.empty((cells, 3), "<i4")
    record[:, 0] = block.positions
    record[:, 1] = 1
    record[:, 2] = sequence
    yield struct.pack("<II", 1, cells)
    yield record
    yield struct.pack("<II", form.transposed, last - first)
    for kind, rows in zip(
        form.key_types[first:last], block.keys[first:last], strict=True
    ):
        yield struct.pack("<iQ", kind, rows.shape[1])
        yield np.ascontiguousarray(rows)
    for kind, rows in zip(
        form.value_types[first:last], block.values[first:last], strict=True
    ):
        if form.transposed:
            size = ELEMENT_BYTES[kind]
            width = rows.shape[1] // size
            columns = rows.reshape(cells, width, size).transpose(1, 0, 2)
            yield struct.pack("<iII", kind, size, width)
            yield np.ascontiguousarray(columns)
        else:
            yield struct.pack("<iQ", kind, rows.shape[1])
            yield np.ascontiguousarray(rows)


class _Reader:
    """Reads a state from front to back and never beyond its end. All raise ValueError."""

    def __init__(self, data: memoryview, more: int = 0) -> None:
        self._data = data
        self._more = more  # numbers of each cell in addition to the usual three
        self._at = 0

    @property
    def rest(self) -> int:
        return len(self._data) - self._at

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"{what} at byte {self._at} of {len(self._data)}")

    def unpack(self, codes: str) -> tuple[int, ...]:
        packed = struct.Struct(f"<{codes}")
        if self.rest < packed.size:
            raise self.wrong("its end")
        values = packed.unpack_from(self._data, self._at)
        self._at += packed.size
        return values

    def array(self, size: int) -> Bytes:
        import numpy as np

        if self.rest < size:
            raise self.wrong(f"no room for {size} bytes")
        part = np.frombuffer(self._data, np.uint8, size, self._at)
        self._at += size
        return part

    def section(self) -> Section:
        streams, count = self.unpack("II")
        if streams != 1:
            raise self.wrong(f"{streams} streams")
        record = 3 + self._more
        whole = self.array(4 * record * count).view("<i4").reshape(count, record)
        cells = whole[:, [0, 1, record - 1]]
        if not count:
            return Section(cells, False, (), ())
        if not (cells[:, 1] == 1).all():
            raise self.wrong(
                "a cell of several sequences, or with more than a position"
            )
        transposed, layers = self.unpack("II")
        if transposed > 1 or layers > MAX_LAYERS:
            raise self.wrong(f"{layers} layers")
        keys = tuple(self.rows(count) for _ in range(layers))
        read = self.columns if transposed else self.rows
        has_values = self.rest and not self._begins_section(count)
        value_layers = layers if has_values else 0
        values = tuple(read(count) for _ in range(value_layers))
        return Section(cells, bool(transposed), keys, values)

    def _begins_section(self, count: int) -> bool:
        """Whether another cache of as many cells follows (an indexer's, of keys without values),
        and no values of this one."""
        at = self._at
        try:
            streams, same = self.unpack("II")
            cells = self.array(12 * count).view("<i4").reshape(count, 3)
            return (streams, same) == (1, count) and bool((cells[:, 1] == 1).all())
        except ValueError:
            return False
        finally:
            self._at = at

    def rows(self, cells: int) -> Rows:
        kind, size = self.unpack("iQ")
        if not 0 < size <= _MAX_ROW:
            raise self.wrong(f"rows of {size} bytes")
        return Rows(kind, self.array(cells * size).reshape(cells, size))

    def columns(self, cells: int) -> Rows:
        kind, size, width = self.unpack("iII")
        if ELEMENT_BYTES.get(kind) != size or not 0 < width * size <= _MAX_ROW:
            raise self.wrong(f"{width} elements of {size} bytes, type {kind}")
        return Rows(kind, self.array(width * cells * size).reshape(width, cells, size))
