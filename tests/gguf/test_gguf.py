"""The file format: literal bytes, the gguf library as second opinion, and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggext.errors import GgufError, OutputError
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field, ValueType
from ggext.gguf.writer import TensorToWrite, check_output, write_gguf

F32 = 0


def tensor(name: str, values: list[float]) -> TensorToWrite:
    data = np.asarray(values, "<f4").tobytes()
    return TensorToWrite(name, (len(values),), F32, len(data), lambda: [data])


def small_file(path: Path, **fields: Any) -> Path:
    values = {"general.architecture": "llama", "llama.context_length": 64} | fields
    write_gguf(
        path,
        {k: Field.of(v) for k, v in values.items()},
        [tensor("a", [1.0, 2.0]), tensor("b", [3.0])],
    )
    return path


def test_the_bytes_of_a_tiny_file(tmp_path: Path) -> None:
    """Data at the second block: 4 KB of slack in a key of spaces, which the next change of the
    header uses."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path, {"general.architecture": Field.of("x")}, [tensor("t", [1.5])])
    key = (
        struct.pack("<Q", 20)
        + b"general.architecture"
        + struct.pack("<IQ", 8, 1)
        + b"x"
    )
    info = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 1, 0, 0)
    spaces = 8192 - 24 - len(key) - len(info) - (8 + 13 + 4 + 8)
    padding = (
        struct.pack("<Q", 13)
        + b"ggext.padding"
        + struct.pack("<IQ", 8, spaces)
        + b" " * spaces
    )
    header = b"GGUF\x03\0\0\0" + struct.pack("<QQ", 1, 2) + key + padding + info
    assert path.read_bytes() == header + struct.pack("<f", 1.5) + bytes(28)
    assert list(read_gguf(path).fields) == ["general.architecture"]


def test_the_gguf_library_reads_what_we_write(tmp_path: Path) -> None:
    from gguf import GGUFReader

    fields = {
        "s": "täxt",
        "i": 7,
        "f": 0.5,
        "b": True,
        "strings": ["a", "bc"],
        "ints": [1, -2],
        "floats": [0.5, 2.0],
    }
    path = small_file(tmp_path / "x.gguf", **fields)
    reader = GGUFReader(path)
    assert {k: reader.fields[k].contents() for k in fields} == fields
    assert reader.tensors[0].data.tolist() == [1.0, 2.0]
    assert reader.tensors[1].data.tolist() == [3.0]


def test_we_read_what_the_gguf_library_writes(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "x.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("u8", 1)
    writer.add_int64("i64", -5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("flag", True)
    writer.add_array("names", ["x", "yz"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("w", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    gguf = read_gguf(path)
    values = {k: f.value for k, f in gguf.fields.items() if k != "general.architecture"}
    assert values == {
        "u8": 1,
        "i64": -5,
        "f64": 0.1,
        "flag": True,
        "names": ["x", "yz"],
        "numbers": [1, 2, 3],
    }
    assert gguf.fields["i64"].type is ValueType.INT64
    assert gguf.tensors["w"].shape == (4, 3)
    assert gguf.float_tensor("w").tolist() == list(range(12))


def test_fields_are_written_back_as_they_were(tmp_path: Path) -> None:
    fields = {
        "general.architecture": Field.of("llama"),
        "u16": Field(ValueType.UINT16, 65535),
        "nested": Field(
            ValueType.ARRAY,
            [Field(ValueType.ARRAY, [1, 2], ValueType.UINT8)],
            ValueType.ARRAY,
        ),
        "not utf-8": Field.of(b"\xff\xfe".decode("utf-8", "surrogateescape")),
        "general.alignment": Field.of(64),
    }
    path = tmp_path / "x.gguf"
    write_gguf(path, fields, [tensor("a", [1.0]), tensor("b", [2.0])])
    gguf = read_gguf(path)
    assert gguf.fields == fields
    assert gguf.data_offset % 64 == 0
    assert gguf.tensors["b"].offset == 64


def header(*parts: bytes, tensors: int = 0, fields: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + b"".join(parts)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def text_field(key: bytes, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", 8) + string(value)


ARCH = text_field(b"general.architecture", b"llama")


def info(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(
        f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset
    )


HOSTILE = {
    "not-gguf": (b"PK\x03\x04" + bytes(60), "starts with"),
    "empty": (b"", "is empty"),
    "version-1": (header(version=1), "GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
    "huge-key-count": (header(fields=1 << 63), "keys do not fit"),
    "huge-tensor-count": (header(tensors=1 << 63), "tensors do not fit"),
    "long-key": (
        header(struct.pack("<Q", 1 << 40) + bytes(32)),
        "reaches past the end",
    ),
    "long-string": (
        header(string(b"k") + struct.pack("<IQ", 8, 1 << 62) + bytes(32)),
        "reaches past the end",
    ),
    "huge-array": (
        header(string(b"k") + struct.pack("<IIQ", 9, 4, 1 << 62) + bytes(32)),
        "do not fit",
    ),
    "deep-array": (
        header(
            string(b"k")
            + struct.pack("<I", 9)
            + struct.pack("<IQ", 9, 1) * 9
            + bytes(64)
        ),
        "deeper",
    ),
    "unknown-type": (
        header(string(b"k") + struct.pack("<I", 99) + bytes(32)),
        "unknown value type 99",
    ),
    "empty-key": (header(text_field(b"", b"x") + bytes(32)), "key is empty"),
    "twice": (header(ARCH, ARCH, fields=2), "occurs twice"),
    "no-architecture": (
        header(text_field(b"some.key", b"x")),
        "general.architecture is missing",
    ),
    "alignment": (
        header(
            ARCH, string(b"general.alignment") + struct.pack("<II", 4, 24), fields=2
        ),
        "power of two",
    ),
    "alignment-0": (
        header(ARCH, string(b"general.alignment") + struct.pack("<II", 4, 0), fields=2),
        "power of two",
    ),
    "tensor-twice": (
        header(ARCH, info(b"t", (1,)), info(b"t", (1,), offset=32), tensors=2),
        "occurs twice",
    ),
    "no-dimensions": (
        header(ARCH, info(b"t", ()), bytes(64), tensors=1),
        "0 dimensions",
    ),
    "five-dimensions": (header(ARCH, info(b"t", (1,) * 5), tensors=1), "5 dimensions"),
    "overflow": (
        header(ARCH, info(b"t", (1 << 40, 1 << 40)), tensors=1),
        "impossible shape",
    ),
    "zero-size": (header(ARCH, info(b"t", (0,)), tensors=1), "impossible shape"),
    "unknown-tensor-type": (
        header(ARCH, info(b"t", (1,), kind=250), tensors=1),
        "unknown type 250",
    ),
    "partial-block": (
        header(ARCH, info(b"t", (31,), kind=8), tensors=1),
        "whole blocks of 32",
    ),
    "misaligned": (
        header(ARCH, info(b"t", (1,), offset=4), bytes(96), tensors=1),
        "not a multiple",
    ),
    "overlap": (
        header(
            ARCH, info(b"t", (16,)), info(b"u", (16,), offset=32), bytes(256), tensors=2
        ),
        "overlaps",
    ),
    "truncated-data": (
        header(ARCH, info(b"t", (4096,)), bytes(64), tensors=1),
        "file is truncated",
    ),
    "far-offset": (
        header(ARCH, info(b"t", (1,), offset=1 << 62), bytes(64), tensors=1),
        "file is truncated",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError, match=message) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = small_file(
        tmp_path / "x.gguf", names=["a", "b"], numbers=[1, 2]
    ).read_bytes()
    path = tmp_path / "cut.gguf"
    end = len(whole) - 28  # the last 28 bytes pad the last tensor's 4
    spaces = range(whole.index(b"    ") + 8, whole.rindex(b"    ") - 8)
    for length in sorted(set(range(end)) - set(spaces)):
        path.write_bytes(whole[:length])
        with pytest.raises(GgufError):
            read_gguf(path)
    path.write_bytes(whole[:end])
    read_gguf(path)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4
    )
)
def test_flipped_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    data = bytearray(
        small_file(
            folder / "x.gguf", names=["a", "b"], flag=True, numbers=[1, 2]
        ).read_bytes()
    )
    for at, value in flips:
        data[at % len(data)] = value
    (folder / "x.gguf").write_bytes(data)
    try:
        read_gguf(folder / "x.gguf")
    except GgufError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right, a crash is not


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(
        GgufError,
        match=r"demo: No such file.* ggext convert demo makes a \.gguf file of it",
    ):
        read_gguf(Path("demo"))
    with pytest.raises(GgufError, match=r"none\.gguf: No such file; check the path$"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(GgufError, match="is a folder"):
        read_gguf(tmp_path)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"precious")
    bad = TensorToWrite("t", (4,), F32, 16, lambda: [b"too short"])
    with pytest.raises(OutputError, match="9 bytes were made where 16 belong"):
        write_gguf(path, {"general.architecture": Field.of("x")}, [bad])
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["x.gguf"]


def test_a_full_disk_is_told_before_writing(tmp_path: Path) -> None:
    huge = TensorToWrite("t", (1 << 50,), F32, 1 << 52, list)
    with pytest.raises(OutputError, match=r"the disk has .* free; free some"):
        write_gguf(tmp_path / "x.gguf", {"general.architecture": Field.of("x")}, [huge])


def test_a_disk_that_fills_up_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ggext.gguf.pieces.os.pwrite", full)
    with pytest.raises(
        OutputError, match="No space left on device; nothing was written"
    ):
        small_file(tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*.part"))


def test_output_checks(tmp_path: Path) -> None:
    existing = small_file(tmp_path / "x.gguf")
    with pytest.raises(OutputError, match="exists; use force=True"):
        check_output(existing, force=False)
    check_output(existing, force=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, force=True)
    with pytest.raises(OutputError, match="does not exist; make it"):
        check_output(tmp_path / "no" / "x.gguf", force=False)
    with pytest.raises(OutputError, match="No such file"):
        small_file(tmp_path / "no" / "x.gguf")


@pytest.mark.parametrize("value", [None, {"a": 1}, [1, "a"], b"bytes", [[1]]])
def test_values_without_a_gguf_type(value: Any) -> None:
    with pytest.raises(GgufError):
        Field.of(value)


def test_values_that_do_not_fit() -> None:
    with pytest.raises(GgufError, match="does not fit GGUF type UINT32"):
        Field.of(-1).packed()
