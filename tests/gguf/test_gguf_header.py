"""Headers of any content, written by the ``gguf`` library and read by us, and the reverse; headers
of exact length."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import fuzz_gguf
import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from library_gguf import TOKENS, library_file

from ggext import _native
from ggext.errors import GgufError
from ggext.gguf.edit import NewTensor, plan_edit
from ggext.gguf.header import (
    PADDING_KEY,
    SLACK,
    fits,
    pack_header,
    packed_length,
    roomy_length,
)
from ggext.gguf.inplace import apply, undo
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field, TensorInfo, ValueType
from ggext.gguf.values import StoredArray
from ggext.gguf.writer import TensorToWrite, write_gguf

TYPES = {"f4": 0, "f2": 1, "i1": 24, "i2": 25, "i4": 26, "i8": 27, "f8": 28}
VALUES = {
    "UINT8": st.integers(0, 2**8 - 1),
    "INT8": st.integers(-(2**7), 2**7 - 1),
    "UINT16": st.integers(0, 2**16 - 1),
    "INT16": st.integers(-(2**15), 2**15 - 1),
    "UINT32": st.integers(0, 2**32 - 1),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "UINT64": st.integers(0, 2**64 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FLOAT32": st.floats(width=32, allow_nan=False),
    "FLOAT64": st.floats(allow_nan=False),
    "BOOL": st.booleans(),
    "STRING": st.text(st.characters(codec="utf-8"), max_size=40),
}
#: Ours is left out by who reads a header; hypothesis knows it from the sources.
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda name: name != PADDING_KEY
)


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Field]:
    result = {}
    reserved = {"general.architecture", "general.alignment", "split.tensors.count"}
    for name in draw(
        st.lists(NAMES.filter(lambda n: n not in reserved), max_size=8, unique=True)
    ):
        kind = draw(st.sampled_from(sorted(VALUES)))
        if draw(st.booleans()):
            values = draw(st.lists(VALUES[kind], min_size=1, max_size=20))
            result[name] = Field(ValueType.ARRAY, values, ValueType[kind])
        else:
            result[name] = Field(ValueType[kind], draw(VALUES[kind]))
    return result


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray[Any, Any]]:
    result = {}
    for name in draw(
        st.lists(
            st.text("abc.0123456789", min_size=1, max_size=30), max_size=5, unique=True
        )
    ):
        shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
        code = draw(st.sampled_from(sorted(TYPES)))
        result[name] = np.arange(np.prod(shape)).reshape(shape).astype("<" + code)
    return result


ALIGNMENTS = st.sampled_from([8, 16, 32, 64, 256, 4096, 8192])


def by_library(
    path: Path,
    values: dict[str, Field],
    data: dict[str, np.ndarray[Any, Any]],
    alignment: int,
) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for name, field in values.items():
        of = None if field.item_type is None else GGUFValueType[field.item_type.name]
        writer.add_key_value(name, field.value, GGUFValueType[field.type.name], of)
    for name, array in data.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@settings(max_examples=150, deadline=None)
@given(fields(), tensors(), ALIGNMENTS)
def test_what_the_library_writes_is_read_changed_and_restored(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, Field],
    data: dict[str, np.ndarray[Any, Any]],
    alignment: int,
) -> None:
    path = by_library(
        tmp_path_factory.mktemp("library") / "x.gguf", values, data, alignment
    )
    gguf = read_gguf(path)
    assert {k: f for k, f in gguf.fields.items() if k in values} == values
    assert gguf.alignment == alignment
    for name, array in data.items():
        assert gguf.tensors[name].shape == array.shape[::-1]
        assert bytes(gguf.tensor_data(name)) == array.tobytes()
    whole = path.read_bytes()
    for key, (start, end) in gguf.ranges.items():
        assert (
            whole[start:end]
            == struct.pack("<Q", len(key.encode()))
            + key.encode()
            + gguf.fields[key].packed()
        )

    new = gguf.fields | {"zz.new": Field.of("x" * 300)}
    apply(
        gguf,
        plan_edit(
            gguf, new, {}, [NewTensor("rope_freqs.weight", (3,), 0, b"012345678912")]
        ),
    )
    changed = read_gguf(path)
    assert changed.fields == new
    assert changed.data_offset % alignment == 0
    for name, array in data.items():
        assert bytes(changed.tensor_data(name)) == array.tobytes()
    assert bytes(changed.tensor_data("rope_freqs.weight")) == b"012345678912"
    assert len(GGUFReader(path).tensors) == len(data) + 1
    assert undo(path) == 1
    assert path.read_bytes() == whole


@settings(max_examples=150, deadline=None)
@given(fields(), tensors(), ALIGNMENTS)
def test_the_library_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, Field],
    data: dict[str, np.ndarray[Any, Any]],
    alignment: int,
) -> None:
    path = tmp_path_factory.mktemp("ours") / "x.gguf"
    written = [
        TensorToWrite(
            name,
            a.shape[::-1],
            TYPES[a.dtype.str[1:]],
            a.nbytes,
            lambda a=a: [a.tobytes()],
        )  # type: ignore[misc]
        for name, a in data.items()
    ]
    own = {
        "general.architecture": Field.of("llama"),
        "general.alignment": Field.of(alignment),
    }
    write_gguf(path, own | values, written)
    reader = GGUFReader(path)
    for name, field in values.items():
        assert reader.fields[name].contents() == field.value
    assert reader.data_offset % 4096 == reader.data_offset % alignment == 0
    for tensor in reader.tensors:
        assert tensor.data.tobytes() == data[tensor.name].tobytes()
        assert tuple(tensor.shape) == data[tensor.name].shape[::-1]


@settings(max_examples=200, deadline=None)
@given(fields(), st.sampled_from([1, 8, 32, 64, 4096]), st.integers(0, 300))
def test_a_header_is_as_long_as_asked(
    values: dict[str, Field], alignment: int, more: int
) -> None:
    values |= {
        "general.architecture": Field.of("x"),
        "general.alignment": Field.of(alignment),
    }
    infos = [TensorInfo("t", (32,), 0, 0, 128)]
    needed = packed_length(values, infos)
    length = -(-(needed + more) // alignment) * alignment
    if fits(needed, length, alignment):
        assert len(pack_header(values, infos, length)) == length
    else:
        with pytest.raises(GgufError, match="cannot be made"):
            pack_header(values, infos, length)
    assert not fits(needed, length + 1, alignment) or alignment == 1
    roomy = roomy_length(needed, alignment, congruent_to=length)
    assert fits(needed, roomy, alignment)
    assert roomy >= needed + SLACK
    assert (roomy - length) % max(4096, alignment) == 0


def test_version_2_is_kept(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    gguf = read_gguf(path)
    apply(gguf, plan_edit(gguf, gguf.fields | {"new": Field.of(1)}, {}, []))
    assert read_gguf(path).version == 2
    undo(path)
    assert path.read_bytes() == data


def test_arrays_are_built_when_asked_for(tmp_path: Path) -> None:
    gguf = read_gguf(library_file(tmp_path / "x.gguf"))
    field = gguf.fields["tokenizer.ggml.tokens"]
    assert isinstance(field, StoredArray)
    assert "value" not in vars(field)
    assert (field.count, field.item_type) == (500, ValueType.STRING)
    assert field.value == TOKENS
    assert (
        field
        == Field(ValueType.ARRAY, TOKENS, ValueType.STRING)
        != Field(ValueType.ARRAY, TOKENS[1:])
    )
    assert field.packed() == Field(ValueType.ARRAY, TOKENS, ValueType.STRING).packed()


def test_strings_are_walked_over_within_bounds() -> None:
    data = b"".join(struct.pack("<Q", n) + bytes(n) for n in range(4))
    assert _native.skip_strings(data, 0, 4) == len(data)
    assert _native.skip_strings(data, 8, 0) == 8
    assert _native.skip_strings(data, 0, 1 << 63) == ~len(data)
    assert _native.skip_strings(data[:-1], 0, 4) == ~27
    assert _native.skip_strings(struct.pack("<Q", (1 << 64) - 1) + bytes(8), 0, 1) == ~0
    for at in (-1, len(data) + 1):
        with pytest.raises(ValueError, match="at lies outside of data"):
            _native.skip_strings(data, at, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.shift_range(1 << 20, False, 0, 4096)


def test_damaged_headers() -> None:
    """A header or a GgufError, whatever the bytes; tests/support/fuzz_gguf.py was run over millions."""
    read, refused = fuzz_gguf.run(5000, 0)
    assert read > 100
    assert refused > 1000


def test_a_reader_allocates_less_than_the_file(tmp_path: Path) -> None:
    """Counts and lengths of 2^63 are refused before anything is made of them."""
    import tracemalloc

    path = tmp_path / "x.gguf"
    arch = (
        struct.pack("<Q", 20)
        + b"general.architecture"
        + struct.pack("<IQ", 8, 1)
        + b"x"
    )
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    bodies = [struct.pack("<IQ", kind, 1 << 63) for kind in range(13)]
    bodies += [
        struct.pack("<IQQ", 8, 1000, 1 << 63) + bytes(8000),
        struct.pack("<IQ", 9, 1) * 9,
    ]
    for body in bodies:
        path.write_bytes(
            b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + arch + key + body + bytes(100)
        )
        tracemalloc.start()
        with pytest.raises(GgufError, match=r"\(at byte \d+\)"):
            read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 60_000  # Python's own, whatever the file says
