"""Files that are not changed in place: read-only, linked, named by a digest, open elsewhere."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from crash import some_edit
from library_gguf import library_file
from tiny_gguf import write_random

from ggext.errors import OutputError
from ggext.gguf import inplace
from ggext.gguf.exclusive import exclusive
from ggext.gguf.open import read_gguf


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    path.chmod(0o444)
    gguf = read_gguf(path)
    with pytest.raises(OutputError, match=r"x\.gguf is read-only; chmod u\+w it"):
        inplace.apply(gguf, some_edit(gguf))


def test_a_second_name_is_refused(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").hardlink_to(path)
    gguf = read_gguf(path)
    with pytest.raises(OutputError, match="has 2 names"):
        inplace.apply(gguf, some_edit(gguf))


def test_a_link_is_followed(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    before, gguf = path.read_bytes(), read_gguf(link)
    inplace.apply(gguf, some_edit(gguf))
    assert link.is_symlink()
    assert read_gguf(path).get("llama.context_length") == 1024
    inplace.undo(link)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "place",
    [
        f"models/blobs/sha256-{'5' * 64}",  # Ollama
        f"blobs/sha256/{'a' * 64}",  # an OCI layout
        f".git/lfs/objects/ab/cd/{'0' * 64}",
        f".dvc/cache/files/md5/ab/{'0' * 30}",
        f".git/annex/objects/SHA256E-s123--{'0' * 64}.gguf",
    ],
)
def test_a_file_that_its_digest_names_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    library_file(path)
    link = tmp_path / "x.gguf"  # as people lay it
    link.symlink_to(path)
    before = path.read_bytes()
    for name in (path, link):
        gguf = read_gguf(name)
        with pytest.raises(
            OutputError, match=r"where its name is its checksum; .* name an output"
        ):
            inplace.apply(gguf, some_edit(gguf))
    assert path.read_bytes() == before


def test_the_cache_of_hugging_face_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    link = tmp_path / "snapshots" / "1234" / "x.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(library_file(tmp_path / "blobs" / "5678"))
    gguf = read_gguf(link)
    with pytest.raises(OutputError, match="lies in Hugging Face's cache"):
        inplace.apply(gguf, some_edit(gguf))


needs_leases = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells who has a file open"
)


@needs_leases
def test_a_mapped_file_is_refused(tmp_path: Path) -> None:
    """The mapping alone is enough: the file it was made from is closed."""
    path = library_file(tmp_path / "x.gguf")
    gguf = read_gguf(path)
    code = (
        "import mmap, sys\n"
        f"with open({str(path)!r}, 'rb') as file: held = mmap.mmap(file.fileno(), 0, "
        "access=mmap.ACCESS_READ)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(
            OutputError,
            match=rf"is open in python\S* \(process {child.pid}\); close that first",
        ):
            inplace.apply(gguf, some_edit(gguf))
        assert child.stdin is not None
        child.stdin.close()
    inplace.apply(gguf, some_edit(gguf))


@needs_leases
def test_a_model_of_a_running_chat_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from ggext.runtime.model import Model

    path = write_random(tmp_path / "x.gguf", "llama")
    with (
        Model.open(path),
        pytest.raises(OutputError, match=rf"is open in .*\(process {os.getpid()}\)"),
    ):
        inplace.apply(read_gguf(path), some_edit(read_gguf(path)))
    inplace.apply(read_gguf(path), some_edit(read_gguf(path)))


@needs_leases
def test_who_opens_it_meanwhile_waits(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    code = f"print('opening', flush=True); open({str(path)!r}, 'rb'); print('open', flush=True)"
    with exclusive(path):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, bufsize=0
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"opening\n"
        assert not select.select([child.stdout], [], [], 0.3)[0]
    with child:
        assert child.stdout.readline() == b"open\n"


def test_without_leases_a_lock_keeps_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network's file system, or on macOS."""
    path = library_file(tmp_path / "x.gguf")
    gguf = read_gguf(path)
    monkeypatch.setattr("ggext.gguf.exclusive.sys.platform", "darwin")
    with exclusive(path), pytest.raises(OutputError, match="is open in"):
        inplace.apply(gguf, some_edit(gguf))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        if Path("/proc/self/maps").exists():
            with pytest.raises(OutputError, match="is open in"):
                inplace.apply(gguf, some_edit(gguf))
    inplace.apply(gguf, some_edit(gguf))
