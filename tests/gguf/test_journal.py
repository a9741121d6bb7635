"""Undo files that belong to another file, are damaged, or were made by an enemy."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from crash import some_edit
from library_gguf import library_file

from ggext.errors import GgufError, OutputError
from ggext.gguf import inplace
from ggext.gguf.journal import Journal, undo_path
from ggext.gguf.open import read_gguf


def test_a_file_that_was_replaced_is_not_undone(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    gguf = read_gguf(path)
    inplace.apply(gguf, some_edit(gguf))
    other = library_file(tmp_path / "y.gguf", general__name=("another", 8))
    other.replace(path)
    before = path.read_bytes()
    for attempt in (
        lambda: inplace.undo(path),
        lambda: inplace.apply(read_gguf(path), some_edit(read_gguf(path))),
    ):
        with pytest.raises(
            inplace.UnprovenError, match=r"does not prove that it was made for x\.gguf"
        ):
            attempt()
    assert path.read_bytes() == before


def test_a_file_that_changed_since_it_was_read(tmp_path: Path) -> None:
    path = library_file(tmp_path / "x.gguf")
    gguf = read_gguf(path)
    inplace.apply(gguf, some_edit(gguf))
    with pytest.raises(
        OutputError, match="was changed by another program meanwhile; try again"
    ):
        inplace.apply(gguf, some_edit(gguf))


@pytest.mark.parametrize(
    "data",
    [
        b"something else entirely",
        b"ggext-undo 2\n" + b"B" + (1 << 63).to_bytes(8, "little"),
        b"ggext-",
        b"",
    ],
)
def test_hostile_undo_files(tmp_path: Path, data: bytes) -> None:
    path = library_file(tmp_path / "x.gguf")
    before = path.read_bytes()
    undo_path(path).write_bytes(data)
    if data.startswith(b"some"):
        with pytest.raises(
            GgufError, match="is not an undo file of ggext; move it away"
        ):
            read_gguf(path)
    else:
        read_gguf(path)  # a crash left it: nothing had started
        assert not undo_path(path).exists()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage", [{"old_size": -1}, {"written": [["a", 1]]}, {"saved": 3}, {"more": 1}]
)
def test_a_malformed_record_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = library_file(tmp_path / "x.gguf")
    values = {
        "old_size": 1,
        "new_size": 1,
        "insert_at": 0,
        "insert_length": 0,
        "written": [],
        "digest": "",
        "saved": [],
        "inode": 1,
        "samples": [],
        "part": "",
    }
    text = json.dumps(values | damage).encode()
    payload = struct.pack("<Q", len(text)) + text
    frame = b"B" + struct.pack("<Q", len(payload)) + payload
    undo_path(path).write_bytes(
        b"ggext-undo 2\n" + frame + hashlib.sha256(frame).digest()
    )
    with pytest.raises(GgufError, match=r"malformed at byte 13 .*; move it away"):
        Journal.of(path)
