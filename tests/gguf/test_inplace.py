"""Changes of a GGUF file in its place: what they change, what they leave, and that they can always
be taken back."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import CALLS, some_edit, without_shifts
from library_gguf import library_file
from paths import SUPPORT

from ggext.errors import GgufError, OutputError
from ggext.gguf import disk, inplace
from ggext.gguf.edit import NewTensor, plan_edit
from ggext.gguf.journal import undo_path
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def can_shift(folder: Path) -> bool:
    """Whether the file system there can insert a range."""
    probe = folder / "probe"
    probe.write_bytes(bytes(1 << 17))
    with probe.open("r+b") as file:
        try:
            disk.insert_range(file.fileno(), 0, 1 << 16)
        except OSError:
            return False
        finally:
            probe.unlink()
    return True


@pytest.fixture(params=["as the file system can", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to make room: with the file system's help where it has any, and without."""
    if request.param == "copied":
        for name in ("insert_range", "collapse_range"):
            monkeypatch.setattr(disk, name, getattr(disk, name))  # put back afterwards
        without_shifts()
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("alignment", [8, 32, 4096, 1 << 16])
@pytest.mark.parametrize("size", [10, 2000, 9000])
def test_change_and_undo(tmp_path: Path, alignment: int, size: int) -> None:
    path = library_file(tmp_path / "x.gguf", alignment=alignment)
    old, before = read_gguf(path), path.read_bytes()
    path.chmod(0o640)
    inplace.apply(old, some_edit(old, size))
    new = read_gguf(path)
    assert new.get("llama.context_length") == 1024
    assert new.get("ggext.recipe") == "x" * size
    assert list(new.tensors) == ["a", "b", "rope_freqs.weight"]
    for name in old.tensors:
        assert (
            bytes(new.tensor_data(name))
            == before[old.data_offset + old.tensors[name].offset :][
                : old.tensors[name].nbytes
            ]
        )
    assert bytes(new.tensor_data("rope_freqs.weight")) == bytes(range(32))
    assert new.data_offset % alignment == 0
    assert path.stat().st_mode & 0o777 == 0o640
    assert inplace.undo(path) == 1
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["x.gguf"]


def test_the_second_change_finds_slack(tmp_path: Path) -> None:
    """And neither moves the vocabulary: a few blocks are written."""
    path = library_file(tmp_path / "x.gguf")
    before = digest(path)
    gguf = read_gguf(path)
    first = inplace.apply(
        gguf, plan_edit(gguf, gguf.fields | {"new": Field.of("x" * 700)}, {}, [])
    )
    assert first.inserted == 8192
    gguf = read_gguf(path)
    second = inplace.apply(
        gguf, plan_edit(gguf, gguf.fields | {"newer": Field.of("y" * 700)}, {}, [])
    )
    assert (second.inserted, second.how) == (0, "")
    assert second.written <= 16384
    assert inplace.undo(path) == 2
    assert digest(path) == before


def test_tensors_at_the_end_come_and_go(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    gguf = read_gguf(path)
    for number in (8, 16):  # one of another size takes its place
        edit = plan_edit(
            gguf,
            gguf.fields,
            {},
            [NewTensor("r", (number,), 0, bytes(range(4 * number)))],
        )
        inplace.apply(gguf, edit)
        gguf = read_gguf(path)
        assert list(gguf.tensors) == ["a", "b", "r"]
        assert bytes(gguf.tensor_data("r")) == bytes(range(4 * number))
    inplace.apply(gguf, plan_edit(gguf, gguf.fields, {"r": None}, []))
    assert list(read_gguf(path).tensors) == ["a", "b"]


def test_a_tensor_in_the_middle_stays(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    gguf = read_gguf(path)
    before = digest(path)
    with pytest.raises(
        GgufError, match="tensor a has others after it and cannot be taken out in place"
    ):
        plan_edit(gguf, gguf.fields, {"a": None}, [])
    edit = plan_edit(gguf, gguf.fields, {"a": bytes(38400)}, [])
    assert edit.neutralized == ["a"]
    inplace.apply(gguf, edit)
    assert not any(read_gguf(path).tensor_data("a"))
    inplace.undo(path)
    assert digest(path) == before


def test_a_file_without_tensors(tmp_path: Path) -> None:
    """Metadata alone, as the first of several parts can be: it grows at its end."""
    path = library_file(tmp_path / "x.gguf", {})
    before = path.read_bytes()
    gguf = read_gguf(path)
    inplace.apply(gguf, some_edit(gguf))
    assert bytes(read_gguf(path).tensor_data("rope_freqs.weight")) == bytes(range(32))
    inplace.undo(path)
    assert path.read_bytes() == before


def test_what_follows_the_data_is_kept(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    with path.open("ab") as file:
        file.write(b"a signature, perhaps")
    before = path.read_bytes()
    gguf = read_gguf(path)
    inplace.apply(
        gguf, plan_edit(gguf, gguf.fields | {"new": Field.of("x" * 5000)}, {}, [])
    )
    assert path.read_bytes().endswith(b"a signature, perhaps")
    inplace.undo(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "options", [["200"], ["100", "--power"], ["60", "--without-shifts"]], ids=" ".join
)
def test_killed_at_any_point(tmp_path: Path, options: list[str]) -> None:
    """By SIGKILL or by a power failure, in changes, undos and repairs of both; tests/support/crash.py says
    what must hold."""
    folder = tmp_path / "files"
    folder.mkdir()
    script = SUPPORT / "crash.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), "7", *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(script.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{options[0]} of ")


class Failing:
    """Makes the n-th system call of a change fail, or all from there on."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, at: int, for_good: bool
    ) -> None:
        self.at, self.for_good, self.count = at, for_good, 0
        for name in CALLS:
            monkeypatch.setattr(disk, name, self.wrapped(getattr(disk, name)))

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.for_good and self.count > self.at):
                raise OSError(errno.EIO, "Input/output error")
            return call(*arguments)

        return counted


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("undoing", [False, True], ids=["change", "undo"])
@pytest.mark.parametrize("for_good", [False, True], ids=["one call", "all from one on"])
def test_each_system_call_fails_in_turn(
    tmp_path: Path, for_good: bool, undoing: bool
) -> None:
    pristine = library_file(tmp_path / "pristine.gguf")
    path, old = tmp_path / "x.gguf", pristine.read_bytes()
    shutil.copy(pristine, path)
    inplace.apply(read_gguf(path), some_edit(read_gguf(path)))
    new = path.read_bytes()
    for at in range(1, 100):
        if not undoing:
            undo_path(path).unlink(missing_ok=True)
            shutil.copy(pristine, path)
        elif not undo_path(path).exists():
            inplace.apply(read_gguf(path), some_edit(read_gguf(path)))
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at, for_good)
            try:
                gguf = read_gguf(path)
                _ = (
                    inplace.undo(path)
                    if undoing
                    else inplace.apply(gguf, some_edit(gguf))
                )
                failed = False
            except OutputError as error:
                failed = "Input/output error" in str(error)
        read_gguf(path)  # ends what is unfinished
        if failed:  # with a dead disk the last step, which says that all is done, may be missing
            assert path.read_bytes() in ((old, new) if undoing or for_good else (old,))
        assert not list(tmp_path.glob(".*.ggext-part"))
        if undo_path(path).exists():
            inplace.undo(path)
        assert path.read_bytes() == old
        if failing.count < at:
            assert not failed
            return
    pytest.fail("there is no end to the system calls")


def test_a_gap_at_a_wrong_place_is_closed(tmp_path: Path) -> None:
    """The power fails while a file system moves extents, from the last one on: the file has its new
    size, and the gap is still further back. A file system that moves them is needed to take it
    out."""
    if not can_shift(tmp_path):
        pytest.skip("the file system here cannot insert ranges")
    path = library_file(tmp_path / "x.gguf", {"a": np.ones((512, 512), "f4")})
    before = path.read_bytes()
    gguf = read_gguf(path)

    def power_fails(file: int, offset: int, length: int) -> None:
        os.fsync(file)
        disk_insert(file, offset + (1 << 18), length)
        nothing_works()

    def nothing_works(*_: object) -> None:
        raise PowerFailureError

    disk_insert = disk.insert_range
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "insert_range", power_fails)
        patch.setattr(disk, "remove", nothing_works)
        with pytest.raises(PowerFailureError):
            inplace.apply(gguf, some_edit(gguf, 5000))
    assert path.stat().st_size > len(before)
    assert inplace.repair(path).startswith("an interrupted change was taken back")
    assert path.read_bytes() == before


class PowerFailureError(BaseException):
    pass


def test_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("insert_range", "collapse_range"):
        monkeypatch.setattr(disk, name, getattr(disk, name))
    without_shifts()
    monkeypatch.setattr(disk, "share", lambda *_: False)
    monkeypatch.setattr(
        disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})
    )
    path = library_file(tmp_path / "x.gguf")
    before, gguf = path.read_bytes(), read_gguf(path)
    with pytest.raises(
        OutputError, match=r"bytes have to be copied and the disk has 1,000 free"
    ):
        inplace.apply(gguf, some_edit(gguf))
    assert path.read_bytes() == before
    assert not undo_path(path).exists()


def test_50_gb(tmp_path: Path) -> None:
    """Neither read nor copied: the file stays as sparse as it was."""
    if not can_shift(tmp_path):
        pytest.skip("the file system here cannot insert ranges")
    path = library_file(tmp_path / "x.gguf")
    gguf = read_gguf(path)
    with path.open("r+b") as file:
        file.seek(gguf.tensors["a"].nbytes + gguf.data_offset)
        file.truncate(50 * 10**9)
    before, start = path.stat(), digest_of_start(path)
    gguf = read_gguf(path)
    done = inplace.apply(
        gguf, plan_edit(gguf, gguf.fields | {"new": Field.of("x" * 5000)}, {}, [])
    )
    assert (done.how, done.inserted) == ("moved", 12288)
    after = path.stat()
    assert after.st_size == before.st_size + done.inserted
    assert after.st_blocks < 400
    assert inplace.undo(path) == 1
    assert (path.stat().st_size, digest_of_start(path)) == (before.st_size, start)


def digest_of_start(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(1 << 20)).hexdigest()
