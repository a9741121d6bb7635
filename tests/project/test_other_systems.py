"""What Windows has under another name, or not at all; as far as it can be shown elsewhere."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paths import ROOT

from ggext.errors import OutputError
from ggext.footprint import machine
from ggext.gguf import disk, system
from ggext.gguf.exclusive import exclusive
from ggext.gguf.open import read_gguf
from ggext.gguf.types import F32, Field
from ggext.gguf.writer import TensorToWrite, write_gguf

MINGW = "x86_64-w64-mingw32-gcc"
WINE = shutil.which("wine64", path=os.pathsep.join((os.defpath, "/usr/lib/wine")))
POSIX_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
POSIX_CALLS = (
    "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK copy_file_range fchmod fchown fork fstatvfs "
    "geteuid getuid pread pwrite register_at_fork sched_getaffinity sysconf"
).split()


def test_no_module_needs_posix_to_be_imported() -> None:
    """Third-party modules are there before: theirs is another question."""
    code = f"""
import asyncio, importlib, os, pkgutil, subprocess, sys, tempfile
for name in ("click", "jinja2", "llama_cpp", "numpy", "prompt_toolkit", "rich", "gguf", "yaml",
             "platformdirs", "multiprocessing.spawn", "prompt_toolkit.shortcuts", "rich.live",
             "rich.markdown", "matplotlib", "transformers", "torch", "huggingface_hub", "peft"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
try:
    from transformers import Trainer, PrinterCallback  # which are imported when they are named
except ImportError:
    pass
for name in {POSIX_MODULES!r}:
    sys.modules[name] = None
for name in {POSIX_CALLS!r}:
    if hasattr(os, name):
        delattr(os, name)
import ggext
count = 0
for module in pkgutil.walk_packages(ggext.__path__, "ggext."):
    name = module.name.rpartition(".")[2]
    if not name.isidentifier() or (name.startswith("_") and name != "_version"):
        continue  # PyInstaller's hooks, and what is compiled
    try:
        importlib.import_module(module.name)
    except ggext.errors.MissingExtraError:
        continue  # what works inside of another program, which is not here
    count += 1
print(count)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = [*(ROOT / "ggext").rglob("*.py"), *(ROOT / "converters").rglob("*.py")]
    assert int(done.stdout) >= len(files) - 12


@pytest.fixture
def without_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in POSIX_CALLS:
        monkeypatch.delattr(os, name, raising=False)


@pytest.mark.usefixtures("without_posix")
def test_a_file_is_written_and_read_without_posix_s_calls(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000
    tensor = TensorToWrite("a", (len(data) // 4,), F32, len(data), lambda: [data])
    fields = {"general.architecture": Field.of("x")}
    for _ in range(2):
        write_gguf(tmp_path / "a.gguf", fields, [tensor, tensor_named("b", data)])
    gguf = read_gguf(tmp_path / "a.gguf")
    assert bytes(gguf.tensor_data("a")) == bytes(gguf.tensor_data("b")) == data


def tensor_named(name: str, data: bytes) -> TensorToWrite:
    return TensorToWrite(name, (len(data) // 4,), F32, len(data), lambda: [data])


@pytest.mark.usefixtures("without_posix")
def test_places_of_a_file_are_read_and_written_by_many_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "file"
    with path.open("w+b") as file, ThreadPoolExecutor(8) as pool:
        blocks = [bytes([number]) * 4096 for number in range(64)]

        def write(number: int) -> bool:
            system.write_at(file.fileno(), blocks[number], 4096 * number)
            return system.read_at(file.fileno(), 4096, 4096 * number) == blocks[number]

        assert all(pool.map(write, range(64)))
    assert path.read_bytes() == b"".join(blocks)


class Msvcrt(SimpleNamespace):
    """The calls of Windows' C library that are used, over flock."""

    LK_NBLCK = 2

    def locking(self, file: int, mode: int, count: int) -> None:
        import fcntl

        assert (mode, count) == (self.LK_NBLCK, 1)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def get_osfhandle(self, file: int) -> int:
        return file + 1000


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt())  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", "win32")


def test_a_lock_is_one_process_s(tmp_path: Path, windows: None) -> None:
    del windows
    with (tmp_path / "lock").open("wb") as one, (tmp_path / "lock").open("wb") as other:
        assert system.lock(one.fileno()) is True
        assert system.lock(other.fileno()) is False


@pytest.mark.usefixtures("windows")
def test_handles_and_folders_are_windows_own(tmp_path: Path) -> None:
    assert system.native_file(7) == 1007
    disk.sync_folder(tmp_path / "nothing is opened")


@pytest.mark.usefixtures("windows")
def test_a_change_in_place_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with (
        pytest.raises(
            OutputError, match=r"model\.gguf cannot be changed in place on Windows"
        ),
        exclusive(tmp_path / "model.gguf"),
    ):
        pass


@pytest.mark.usefixtures("windows")
def test_the_free_memory_is_asked_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(pointer: Any) -> int:
        status = pointer._obj
        assert status.size == ctypes.sizeof(status) == 64
        status.available = 5 << 30
        return 1

    kernel32 = SimpleNamespace(GlobalMemoryStatusEx=answer)
    monkeypatch.setattr(
        ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False
    )
    assert machine.free_memory(tmp_path, tmp_path) == 5 << 30


@pytest.mark.skipif(shutil.which(MINGW) is None, reason="mingw-w64 is not installed")
@pytest.mark.skipif(sys.platform == "win32", reason="there it is built")
def test_the_extension_builds_for_windows_without_a_warning(tmp_path: Path) -> None:
    subprocess.run([ROOT / ".ci" / "windows-c", sys.executable, tmp_path], check=True)
    module = (tmp_path / "_native.pyd").read_bytes()
    assert module[:2] == b"MZ"
    assert b"PyInit__native" in module
    assert b"python3.dll" in module
    assert b"libwinpthread" not in module
    # Only names of the stable interface, which this Python has too.
    names = {
        line.split()[0]
        for line in (tmp_path / "python3.def").read_text().splitlines()[2:]
    }
    assert len(names) > 20
    assert all(hasattr(ctypes.pythonapi, name) for name in names)


@pytest.mark.skipif(
    not (os.environ.get("GGEXT_WINE") and WINE and shutil.which(MINGW)),
    reason="GGEXT_WINE=1 runs it where Wine and mingw-w64 are installed; half a minute for a prefix",
)
def test_threads_and_files_work_in_windows_own_way(tmp_path: Path) -> None:
    assert WINE is not None
    subprocess.run([ROOT / ".ci" / "windows-c", sys.executable, tmp_path], check=True)
    program = tmp_path / "program.exe"
    sources = [ROOT / "tests" / "windows" / "threads_and_files.c"]
    objects = [tmp_path / "files.o", tmp_path / "parallel.o"]
    native = ROOT / "native"
    subprocess.run(
        [MINGW, "-std=c11", "-I", native, *sources, *objects, "-o", program], check=True
    )
    environment = os.environ | {
        "WINEPREFIX": str(tmp_path / "wine"),
        "WINEDEBUG": "-all",
    }
    done = subprocess.run(
        [WINE, program],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout.count("right")) == (0, 6), done.stdout
