"""Keys and values of cached tokens as bytes: what ``llama_state_seq_get_data`` writes, and only
here.

The format is llama.cpp's own and undocumented (0c1e57098, ``llama_kv_cache::state_write``): u32
magic, i32 sequence, u32 streams; u32 cells; per cell i32 position, u32 number of sequences, their
i32 ids; u32 whether values are transposed, u32 layers; per layer i32 type, u64 row bytes, then the
cells' rows of keys; then the values, either in the same way, or transposed: i32 type, u32 element
bytes, u32 width, then width × cells elements. Little-endian. Every count is checked against the
bytes that are there, and a cache of another form (sliding windows, recurrent, M-RoPE) is a
ModelError.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

_MAX_LAYERS = 512
_MAX_ROW = 1 << 24


@dataclass(frozen=True)
class StateForm:
    """How a cache writes its cells: ``key_types`` and ``value_types`` (ggml's numbers, one a
    layer), whether values are ``transposed``, and llama.cpp's ``magic``."""

    magic: int
    transposed: bool
    key_types: tuple[int, ...]
    value_types: tuple[int, ...]


@dataclass(frozen=True)
class KvBlock:
    """Cached tokens: ``positions`` int32 (n_cells,), and of each layer ``keys`` and ``values``
    uint8 (n_cells, row bytes). Keys are rotated by their positions, as they are in the cache."""

    positions: NDArray[np.int32]
    keys: tuple[Bytes, ...]
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
            [array.shape[1] for array in (*block.keys, *block.values)] for block in (self, other)
        )
        return self.form == other.form and next(widths) == next(widths)

    def cells(self, chosen: Any) -> KvBlock:
        """The cells that a numpy index of the first axis picks, copied."""
        pick = (
            tuple(array[chosen].copy() for array in self.keys),
            tuple(array[chosen].copy() for array in self.values),
        )
        return replace(self, positions=self.positions[chosen].copy(), keys=pick[0], values=pick[1])


def joined(blocks: Sequence[KvBlock]) -> KvBlock:
    """The cells of all blocks, one after the other; all of one form."""
    import numpy as np

    layers = range(len(blocks[0].keys))
    return replace(
        blocks[0],
        positions=np.concatenate([block.positions for block in blocks]),
        keys=tuple(np.concatenate([block.keys[i] for block in blocks]) for i in layers),
        values=tuple(np.concatenate([block.values[i] for block in blocks]) for i in layers),
    )


def parse(data: bytes | bytearray | memoryview) -> KvBlock:
    """The cells of one sequence, in the order of their positions. Raises ModelError for any other
    bytes."""
    import numpy as np

    reader = _Reader(memoryview(data))
    magic, _sequence, streams, cells = reader.unpack("IiII")
    if streams != 1:
        raise reader.wrong(f"{streams} streams")
    record = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
    table = reader.array(cells * record.itemsize).view(record)
    if cells and not (table["sequences"] == 1).all():
        raise reader.wrong("a cell of several sequences, or with more than a position")
    transposed, layers = reader.unpack("II") if cells else (0, 0)
    if transposed > 1 or layers > _MAX_LAYERS:
        raise reader.wrong(f"{layers} layers")
    keys = [reader.rows(cells) for _ in range(layers)]
    values = [reader.columns(cells) if transposed else reader.rows(cells) for _ in range(layers)]
    reader.end()
    form = StateForm(
        magic, bool(transposed), tuple(k[0] for k in keys), tuple(v[0] for v in values)
    )
    block = KvBlock(
        table["position"].copy(), tuple(k[1] for k in keys), tuple(v[1] for v in values), form
    )
    order = np.argsort(block.positions, kind="stable")
    return block if (order == np.arange(cells)).all() else block.cells(order)


def build(block: KvBlock, sequence: int) -> bytes:
    """The bytes from which ``llama_state_seq_set_data`` restores the block. ``parse`` undoes it."""
    import numpy as np

    form, cells = block.form, len(block)
    record = np.empty((cells, 3), "<i4")
    record[:, 0], record[:, 1], record[:, 2] = block.positions, 1, sequence
    parts: list[Any] = [struct.pack("<IiII", form.magic, sequence, 1, cells), record]
    parts.append(struct.pack("<II", form.transposed, len(block.keys)))
    for kind, rows in zip(form.key_types, block.keys, strict=True):
        parts += [struct.pack("<iQ", kind, rows.shape[1]), np.ascontiguousarray(rows)]
    for kind, rows in zip(form.value_types, block.values, strict=True):
        if form.transposed:
            size = ELEMENT_BYTES[kind]
            width = rows.shape[1] // size
            columns = rows.reshape(cells, width, size).transpose(1, 0, 2)
            parts += [struct.pack("<iII", kind, size, width), np.ascontiguousarray(columns)]
        else:
            parts += [struct.pack("<iQ", kind, rows.shape[1]), np.ascontiguousarray(rows)]
    return b"".join(parts)


#: ggml's number of a type whose elements stand alone → bytes of one (f32, f16, bf16).
ELEMENT_BYTES = {0: 4, 1: 2, 30: 2}


class _Reader:
    """Reads a state from front to back and never beyond its end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def wrong(self, what: str) -> ModelError:
        return ModelError(
            f"llama.cpp's state of a sequence has {what} at byte {self._at} of {len(self._data)}: "
            "this model keeps its cache in a form that ggext cannot edit; use --when-full stop"
        )

    def unpack(self, codes: str) -> tuple[int, ...]:
        packed = struct.Struct(f"<{codes}")
        if len(self._data) - self._at < packed.size:
            raise self.wrong("its end")
        values = packed.unpack_from(self._data, self._at)
        self._at += packed.size
        return values

    def array(self, size: int) -> Bytes:
        import numpy as np

        if len(self._data) - self._at < size:
            raise self.wrong(f"no room for {size} bytes")
        part = np.frombuffer(self._data, np.uint8, size, self._at)
        self._at += size
        return part

    def rows(self, cells: int) -> tuple[int, Bytes]:
        kind, size = self.unpack("iQ")
        if not 0 < size <= _MAX_ROW:
            raise self.wrong(f"rows of {size} bytes")
        return kind, self.array(cells * size).reshape(cells, size).copy()

    def columns(self, cells: int) -> tuple[int, Bytes]:
        kind, size, width = self.unpack("iII")
        if ELEMENT_BYTES.get(kind) != size or not 0 < width * size <= _MAX_ROW:
            raise self.wrong(f"{width} elements of {size} bytes, type {kind}")
        columns = self.array(width * cells * size).reshape(width, cells, size)
        return kind, columns.transpose(1, 0, 2).reshape(cells, width * size)

    def end(self) -> None:
        if self._at != len(self._data):
            raise self.wrong("more bytes")
