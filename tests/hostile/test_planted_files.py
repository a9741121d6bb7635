"""Files that someone else put next to a model: undo files, parts, pipes, links, giants."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crash import some_edit, without_shifts
from library_gguf import library_file
from tiny_gguf import write_random

from ggext.errors import CheckpointError, GgextError, GgufError, OutputError, UsageError
from ggext.gguf import disk, inplace, journal
from ggext.gguf.journal import Identity, Record, undo_path
from ggext.gguf.open import read_gguf
from ggext.gguf.plain_files import NotPlainError, create_plain, open_plain, read_plain


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return library_file(tmp_path / "m.gguf")


def planted(model: Path, **changes: Any) -> Record:
    """A record that says what it likes, of this very file."""
    size = model.stat().st_size
    identity = Identity(model.stat().st_ino, [])
    record = Record(
        size, size, 0, 0, [(size - 64, b"EVIL" * 8)], [(0, 8)], "x", identity, ""
    )
    return replace(record, **changes)


def plant(model: Path, record: Record | bytes) -> None:
    payload = record if isinstance(record, bytes) else record.packed()
    frame = b"B" + struct.pack("<Q", len(payload)) + payload
    undo_path(model).write_bytes(
        journal._MAGIC + frame + hashlib.sha256(frame).digest()
    )


@pytest.mark.parametrize("is_of_this_file", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"old_size": 0, "new_size": 1 << 40, "saved": []},
        {"old_size": 0, "new_size": 1 << 62, "saved": [], "written": [(0, 1 << 62)]},
    ],
)
def test_a_record_that_proves_nothing_is_not_believed(
    model: Path, change: dict[str, Any], is_of_this_file: bool
) -> None:
    """Also of the right inode, with no sample of what stays."""
    before = model.read_bytes()
    inode = model.stat().st_ino if is_of_this_file else 1
    plant(model, planted(model, identity=Identity(inode, []), **change))
    for attempt in (read_gguf, inplace.repair, inplace.undo):
        with pytest.raises(GgufError, match=r"does not prove|malformed"):
            attempt(model)
    assert model.read_bytes() == before


def test_samples_of_another_file_are_not_believed(model: Path) -> None:
    before = model.read_bytes()
    identity = Identity(model.stat().st_ino, [(8192, "0" * 64)])
    plant(model, planted(model, identity=identity))
    with pytest.raises(inplace.UnprovenError):
        read_gguf(model)
    assert model.read_bytes() == before
    inplace.repair(model, trust=True)  # whoever is asked may say so
    assert model.read_bytes() != before


def test_an_undo_file_of_another_owner_is_not_believed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model.read_bytes()
    plant(model, planted(model))
    real = journal.Journal.of

    def foreign(path: Path) -> journal.Journal:
        found = real(path)
        found.owner += 1
        return found

    monkeypatch.setattr(inplace.Journal, "of", foreign)
    with pytest.raises(inplace.UnprovenError):
        read_gguf(model)
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"old_size": 2**70, "new_size": 2**70},
        {"new_size": 2**62, "insert_at": 2**60, "insert_length": 2**62},
        {"saved": [(2**63, b"x")]},
        {"old_size": 0, "new_size": 2**62, "saved": [], "written": [(0, 8)]},
        {"written": [(2**61, 2**61)]},
        {"written": [(1, -5)]},
        {"digest": 5},
        {"part": "../x"},
        {"part": None},
        {"identity": Identity(-1, [])},
        {"identity": Identity(1, [(1, 2)])},  # type: ignore[list-item]
    ],
)
def test_absurd_records_are_one_sentence(model: Path, change: dict[str, Any]) -> None:
    before = model.read_bytes()
    plant(model, planted(model, **change))
    with pytest.raises(GgufError, match="malformed at byte 13") as caught:
        read_gguf(model)
    assert "\n" not in str(caught.value)
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        b"[1]",
        b"[" * 100_000,
        b'{"saved": [[0, ' + b"9" * 5000 + b"]]}",
        b'{"saved": [[Infinity, 5]], "written": []}',
        b"\xff",
        b"",
    ],
)
def test_absurd_descriptions_are_one_sentence(model: Path, text: bytes) -> None:
    plant(model, struct.pack("<Q", len(text)) + text)
    with pytest.raises(GgufError, match="malformed at byte 13"):
        read_gguf(model)
    plant(model, b"\xff" * 8 + text)
    with pytest.raises(GgufError, match="malformed at byte 13"):
        read_gguf(model)


def test_a_model_that_moved_is_repaired_when_asked(tmp_path: Path, model: Path) -> None:
    before, gguf = model.read_bytes(), read_gguf(model)

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "truncate", fails)
        patch.setattr(inplace, "_take_back", fails)
        with contextlib.suppress(KeyboardInterrupt):
            inplace.apply(gguf, some_edit(gguf))
    (tmp_path / "other").mkdir()
    for path in (model, undo_path(model)):
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    moved = tmp_path / "other" / model.name
    if journal.Journal.of(moved).unfinished:
        with pytest.raises(inplace.UnprovenError):
            read_gguf(moved)
        inplace.repair(moved, trust=True)
    assert moved.read_bytes() == before
    read_gguf(model)
    assert model.read_bytes() == before


def test_a_link_in_the_place_of_an_undo_file(tmp_path: Path, model: Path) -> None:
    for victim, content in ((tmp_path / "new", None), (tmp_path / "zeros", bytes(10))):
        if content is not None:
            victim.write_bytes(content)
        undo_path(model).symlink_to(victim)
        for attempt in (
            read_gguf,
            lambda path: inplace.apply(gguf_of(path), some_edit(gguf_of(path))),
        ):
            with pytest.raises(
                GgextError, match="is a link and not a plain file; move it away"
            ):
                attempt(model)
        assert (victim.read_bytes() if victim.exists() else None) == content
        undo_path(model).unlink()


def gguf_of(path: Path) -> Any:
    from ggext.gguf.reader import parse_header

    return parse_header(path, path.read_bytes())


def test_nobody_can_place_a_link_where_a_successor_is_made(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("insert_range", "collapse_range"):
        monkeypatch.setattr(disk, name, getattr(disk, name))
    without_shifts()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".{model.name}.ggext-part").symlink_to(victim)  # its name until now
    monkeypatch.setattr(
        inplace, "successor_name", lambda path: f".{path.name}.known.ggext-part"
    )
    known = tmp_path / f".{model.name}.known.ggext-part"
    known.symlink_to(victim)
    before, gguf = model.read_bytes(), read_gguf(model)
    with pytest.raises(GgextError, match="File exists"):
        inplace.apply(gguf, some_edit(gguf, 40_000))
    assert victim.read_text() == "precious"
    assert model.read_bytes() == before


def test_an_undo_file_is_as_readable_as_its_model(model: Path) -> None:
    for mode, umask in ((0o600, 0), (0o640, 0o077), (0o644, 0)):
        model.chmod(mode)
        was = os.umask(umask)
        try:
            inplace.apply(read_gguf(model), some_edit(read_gguf(model)))
        finally:
            os.umask(was)
        assert stat.S_IMODE(undo_path(model).stat().st_mode) == mode
        inplace.undo(model)


def test_pipes_devices_and_giants_are_refused_before_a_read(
    tmp_path: Path, model: Path
) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(GgufError, match="is not a plain file; check the path"):
            read_gguf(path)
    os.mkfifo(undo_path(model))
    with pytest.raises(GgufError, match="is not a plain file; move it away"):
        read_gguf(model)
    undo_path(model).unlink()
    undo_path(model).mkdir()
    with pytest.raises(GgufError, match="is not a plain file; move it away"):
        read_gguf(model)
    undo_path(model).rmdir()
    with undo_path(model).open("wb") as file:
        file.write(journal._MAGIC)
        file.truncate(200 << 30)
    with pytest.raises(
        GgufError, match="is a giant of 214,748,364,800 bytes; move it away"
    ):
        read_gguf(model)


def test_plain_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    was = os.umask(0o077)
    try:
        os.close(create_plain(path, 0o640))
    finally:
        os.umask(was)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(FileExistsError):
        create_plain(path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        create_plain(tmp_path / "link")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(path)
    os.close(open_plain(tmp_path / "link"))
    with pytest.raises(NotPlainError, match="is a link"):
        open_plain(tmp_path / "link", follow=False)
    path.write_bytes(b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(NotPlainError, match="has 5 bytes, and at most 4 are read"):
        read_plain(path, 4)


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "config.json", "tokenizer.json"]
)
def test_a_checkpoints_links_lead_to_what_is_its_own(tmp_path: Path, name: str) -> None:
    from ggext.checkpoint.files import read_text

    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (folder / name).symlink_to(secret)
    with pytest.raises(
        CheckpointError, match=r"is a link to .*secret\.txt, outside of the"
    ):
        read_text(folder / name)
    (folder / name).unlink()
    (folder / "own").write_text("own")
    (folder / name).symlink_to("own")
    assert read_text(folder / name) == "own"
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "1234").write_text("cached")
    (cache / "snapshots" / "main").mkdir(parents=True)
    (cache / "snapshots" / "main" / name).symlink_to(cache / "blobs" / "1234")
    assert read_text(cache / "snapshots" / "main" / name) == "cached"


@pytest.mark.parametrize("writer", ["file", "parts", "beside", "text"])
def test_a_new_file_whose_name_is_exchanged_is_not_written_elsewhere(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment after it was made, before its first byte."""
    from ggext.convert import ConvertOptions, convert
    from ggext.convert.recipe_file import Request, write_request
    from ggext.rope.scaling import RopeScaling

    model = write_random(tmp_path / "model.gguf", "llama")
    victim = tmp_path / "victim"
    victim.write_text("kept")
    opened = os.open

    def exchanged(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        handle = opened(path, flags, *rest, **more)
        if flags & os.O_EXCL and str(path).endswith(".part"):
            os.unlink(path, dir_fd=more.get("dir_fd"))
            os.symlink(victim, path, dir_fd=more.get("dir_fd"))
        return handle

    monkeypatch.setattr(os, "open", exchanged)
    out = tmp_path / "out.gguf"
    yarn = RopeScaling("yarn", factor=4)
    calls = {
        "file": lambda: convert(ConvertOptions(model, out, yarn, type="f16")),
        "parts": lambda: convert(ConvertOptions(model, out, yarn, split=100_000)),
        "beside": lambda: convert(ConvertOptions(model, out, yarn)),
        "text": lambda: write_request(out, Request(yarn)),
    }
    with pytest.raises(OutputError, match="was exchanged meanwhile"):
        calls[writer]()
    assert victim.read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == [
        "model.gguf",
        "victim",
    ]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00001-of-00001.safetensors"]
)
def test_links_of_weights_lead_to_what_is_the_checkpoints_own(
    tmp_path: Path, name: str
) -> None:
    """In the single file and in shards; from the hub's cache only to its own repository."""
    from hostile.checkpoints import GOOD

    from ggext.checkpoint.weights import read_tensors

    weights = (GOOD / "model.safetensors").read_bytes()

    def planted(folder: Path, target: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(weights)
        (folder / name).symlink_to(target)
        return folder

    cache, other = tmp_path / "models--a--b", tmp_path / "models--a--secret"
    (other / "snapshots").mkdir(parents=True)
    for number, target in enumerate(
        [tmp_path / "private.safetensors", other / "blobs" / "12"]
    ):
        folder = planted(cache / "snapshots" / str(number), target)
        with pytest.raises(
            CheckpointError, match=f"{name} is a link to .*{target.name}, outside"
        ):
            read_tensors(folder)
    assert read_tensors(planted(cache / "snapshots" / "main", cache / "blobs" / "12"))
    assert read_tensors(planted(tmp_path / "shares", tmp_path / "base" / name))


def test_pipes_in_the_place_of_other_files(tmp_path: Path) -> None:
    from ggext.chat import transcript
    from ggext.checkpoint.safetensors import read_header
    from ggext.checkpoint.vocabulary.room import vocabulary_room
    from ggext.convert.imatrix import read_imatrix
    from ggext.convert.recipe_file import read_request

    pipe = tmp_path / "tokenizer.model"
    os.mkfifo(pipe)
    for read in (
        transcript.load,
        lambda path: list(read_header(path)),
        read_imatrix,
        read_request,
    ):
        with pytest.raises(GgextError, match="is not a plain file"):
            read(pipe)
    assert vocabulary_room(tmp_path, 100) is None


@pytest.mark.parametrize("name", ["giant", "endless"])
def test_a_text_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggext.chat.documents import read_document
    from ggext.quality.texts import read_text

    monkeypatch.setattr("ggext.chat.documents.MAX_DOCUMENT", 1 << 21)
    monkeypatch.setattr("ggext.quality.texts._MAX_BYTES", 1 << 21)
    path = Path("/dev/zero")
    if name == "giant":
        path = tmp_path / "giant.txt"
        with path.open("wb") as file:
            file.truncate(200 << 30)
    for read in (read_document, read_text):
        with pytest.raises(UsageError, match="has more than"):
            read(path)


def test_a_text_may_come_through_a_pipe() -> None:
    """As in `ggext chat MODEL -f <(pdftotext book.pdf -)`."""
    from ggext.chat.documents import read_document

    reader, writer = os.pipe()
    os.write(writer, b"a short text")
    os.close(writer)
    assert read_document(Path(f"/dev/fd/{reader}")).text == "a short text"
    os.close(reader)
