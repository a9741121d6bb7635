"""An output is whole or absent, whatever happens: the process is killed, the disk fills up, the
input vanishes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from paths import SUPPORT
from tiny_gguf import write_random

from ggext.convert import ConvertOptions, convert
from ggext.errors import CheckpointError, GgextError, OutputError
from ggext.gguf.open import read_gguf
from ggext.gguf.pieces import Piece, write_at
from ggext.gguf.types import Field
from ggext.gguf.writer import LateFields, TensorToWrite, write_gguf

FIELDS = {"general.architecture": Field.of("x")}

# Pieces that take their time: the parent kills in the middle of one. It says how many are done.
SLOW = """
import sys, time
from pathlib import Path
from ggext.gguf.pieces import Piece
from ggext.gguf.split import write_parts
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf

def make():
    time.sleep(0.01)
    return bytes(1 << 16)

def done(_):
    print("piece", flush=True)

def tensor(name):
    return TensorToWrite(name, (1 << 17,), 0, 1 << 19, lambda: [Piece(1 << 16, make) for _ in range(8)])

fields, tensors = {"general.architecture": Field.of("x")}, [tensor("a"), tensor("b")]
print("start", flush=True)
if sys.argv[2] == "one":
    write_gguf(Path(sys.argv[1]), fields, tensors, done)
else:
    write_parts(Path(sys.argv[1]), fields, tensors, 1 << 19, done)
print("end", flush=True)
"""


@pytest.mark.parametrize("form", ["one", "set"])
@pytest.mark.parametrize("after", [0, 1, 7, 12, 16])
def test_kill_9_leaves_the_old_file(tmp_path: Path, form: str, after: int) -> None:
    names = (
        ["x.gguf"]
        if form == "one"
        else ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]
    )
    for name in names:
        (tmp_path / name).write_bytes(b"the old file")
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "x.gguf"), form],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for _ in range(after + 1):
        assert child.stdout.readline() in ("start\n", "piece\n")
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    for name in names:
        assert (tmp_path / name).read_bytes() == b"the old file"
    left = {p.name for p in tmp_path.iterdir() if p.name != "home"} - set(names)
    assert all(re.fullmatch(r"\.x.*\.gguf\..*\.part", name) for name in left)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            + SLOW,
            str(tmp_path / "x.gguf"),
            "one",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for _ in range(4):
        child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == []


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one: the process may write 1 MB and no more."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from pathlib import Path; from ggext.gguf.types import Field; from ggext.errors import "
        "OutputError\n"
        "from ggext.gguf.writer import TensorToWrite, write_gguf\n"
        "t = TensorToWrite('t', (1 << 20,), 0, 4 << 20, lambda: [bytes(1 << 20)] * 4)\n"
        "try: write_gguf(Path('x.gguf'), {'general.architecture': Field.of('x')}, [t])\n"
        "except OutputError as error: print(error)\n"
    )
    (tmp_path / "x.gguf").write_bytes(b"the old file")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "x.gguf: File too large; nothing was written\n", done.stderr
    assert (tmp_path / "x.gguf").read_bytes() == b"the old file"
    assert not list(tmp_path.glob(".*.part"))


def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(
        "ggext.gguf.writer.os.fsync", lambda file: (calls.append(file), sync(file))
    )
    return calls


def test_what_replaces_a_file_is_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file is left to the system, as cp leaves it."""
    calls = synced(monkeypatch)
    write_gguf(tmp_path / "x.gguf", FIELDS, [])
    assert len(calls) == 0
    write_gguf(tmp_path / "x.gguf", FIELDS, [])
    assert len(calls) == 1


def test_the_first_error_ends_all_threads(tmp_path: Path) -> None:
    begun, threads = [], threading.active_count()

    def make(number: int) -> bytes:
        begun.append(number)
        if number == 3:
            raise CheckpointError("piece 3 cannot be made")
        time.sleep(0.001)
        return bytes(4)

    pieces = [Piece(4, lambda number=number: make(number)) for number in range(1000)]  # type: ignore[misc]
    tensor = TensorToWrite("t", (1000,), 0, 4000, lambda: pieces)
    with pytest.raises(CheckpointError, match="piece 3 cannot be made"):
        write_gguf(tmp_path / "x.gguf", FIELDS, [tensor])
    assert len(begun) < 100
    assert threading.active_count() == threads
    assert not (tmp_path / "x.gguf").exists()


def test_pieces_and_bytes_land_in_their_places(tmp_path: Path) -> None:
    """In whatever order the threads finish."""

    def slow(value: int) -> bytes:
        time.sleep(0.02 if value % 2 else 0)
        return bytes([value]) * 8

    chunks = [Piece(8, lambda value=value: slow(value)) for value in range(20)]  # type: ignore[misc]
    tensor = TensorToWrite(
        "t",
        (44,),
        0,
        176,
        lambda: [*chunks, bytearray(b"\x63" * 8), memoryview(b"\x64" * 8)],
    )
    told: list[int] = []
    size = write_gguf(
        tmp_path / "x.gguf", FIELDS, [tensor, replace(tensor, name="u")], told.append
    )
    gguf = read_gguf(tmp_path / "x.gguf")
    wanted = (
        b"".join(bytes([value]) * 8 for value in range(20)) + b"\x63" * 8 + b"\x64" * 8
    )
    assert bytes(gguf.tensor_data("t")) == bytes(gguf.tensor_data("u")) == wanted
    assert sum(told) == 352
    assert (tmp_path / "x.gguf").stat().st_size == size


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_header_that_is_completed_while_the_data_is_written(
    tmp_path: Path, length: int
) -> None:
    """With room for it, and without: then the file is written again."""
    more = FIELDS | {"general.name": Field.of("x" * length)}
    calls: list[int] = []

    def complete() -> dict[str, Field]:
        calls.append(1)
        return more

    tensor = TensorToWrite("t", (4,), 0, 16, lambda: [b"0123456789abcdef"])
    size = write_gguf(tmp_path / "x.gguf", FIELDS, [tensor], late=LateFields(complete))
    gguf = read_gguf(tmp_path / "x.gguf")
    assert (gguf.get("general.name"), bytes(gguf.tensor_data("t"))) == (
        "x" * length,
        b"0123456789abcdef",
    )
    assert (len(calls), (tmp_path / "x.gguf").stat().st_size) == (1, size)


def test_a_header_that_cannot_be_completed_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("old")

    def fails() -> dict[str, Field]:
        raise CheckpointError("no")

    tensors = [TensorToWrite("t", (1 << 18,), 0, 1 << 20, lambda: [bytes(1 << 20)])]
    with pytest.raises(CheckpointError, match="no"):
        write_gguf(tmp_path / "x.gguf", FIELDS, tensors, late=LateFields(fails))
    assert [(p.name, p.read_text()) for p in tmp_path.glob("*.gguf*")] == [
        ("x.gguf", "old")
    ]
    assert not list(tmp_path.glob(".x.gguf*"))


def test_a_piece_of_another_length_is_refused(tmp_path: Path) -> None:
    tensor = TensorToWrite("t", (4,), 0, 16, lambda: [Piece(16, lambda: bytes(15))])
    with pytest.raises(ValueError, match="15 bytes were made where 16 belong"):
        write_gguf(tmp_path / "x.gguf", FIELDS, [tensor])
    assert not (tmp_path / "x.gguf").exists()


def test_an_input_that_is_cut_short_meanwhile(tmp_path: Path) -> None:
    """Mapped, it would be a SIGBUS."""
    source = write_random(tmp_path / "in.gguf", "llama")
    from ggext.convert import execute, plan

    planned = plan(ConvertOptions(source, tmp_path / "out.gguf"))
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size // 2)
    with pytest.raises(GgextError, match="was cut short while it was read"):
        execute(planned)
    source.unlink()
    with pytest.raises(GgextError, match="No such file"):
        execute(planned)
    assert not (tmp_path / "out.gguf").exists()


def test_no_space_for_it_all(tmp_path: Path) -> None:
    """The disk is asked for all of it before anything is written."""
    made = []

    def make() -> bytes:
        made.append(True)
        return bytes(1 << 20)

    tensor = TensorToWrite("t", (1 << 18,), 0, 1 << 20, lambda: [Piece(1 << 20, make)])

    def refuse(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ggext._native.reserve", refuse)
        with pytest.raises(
            OutputError, match="No space left on device; nothing was written"
        ):
            write_gguf(tmp_path / "x.gguf", FIELDS, [tensor])
    assert made == []


def test_memory_is_that_of_a_few_pieces(tmp_path: Path) -> None:
    """128 MB go through a process that may take 64 MB more than it has."""
    code = (
        "from pathlib import Path\n"
        "import numpy, ggext.native\n"
        "from processes import peak_memory\n"
        "from ggext.gguf.pieces import Piece; from ggext.gguf.types import Field\n"
        "from ggext.gguf.writer import TensorToWrite, write_gguf\n"
        "before = peak_memory()\n"
        "pieces = lambda: (Piece(1 << 20, lambda: bytes(1 << 20)) for _ in range(128))\n"
        "t = TensorToWrite('t', (32 << 20,), 0, 128 << 20, pieces)\n"
        "write_gguf(Path('x.gguf'), {'general.architecture': Field.of('x')}, [t])\n"
        "print(peak_memory() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * (1 if sys.platform == "linux" else 1 / 1024) < 64 << 10


def test_conversion_opens_few_files_and_maps_none(tmp_path: Path) -> None:
    source = write_random(tmp_path / "in.gguf", "llama")
    convert(ConvertOptions(source, tmp_path / "out.gguf", type="f16"))
    if sys.platform == "linux":
        assert str(source) not in Path("/proc/self/maps").read_text()


def test_a_system_that_writes_nothing_is_a_full_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ggext.gguf.system.write_at", lambda *_: 0)
    with pytest.raises(OSError, match="No space left"):
        write_at(0, 0, memoryview(b"data"))
