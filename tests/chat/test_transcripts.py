"""Chats that are saved as a file, loaded, and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_chat import Letters, QueuedEngine, Script, chat

from ggext.chat import transcript
from ggext.chat.transcript import TranscriptError, Turn
from ggext.errors import OutputError
from ggext.runtime.engine import Sampling


def test_saving_and_loading_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    chat(QueuedEngine("Hi ☃!"), Script("Hello", f"/save {path}"), system="Be kind.")
    saved = json.loads(path.read_text())
    assert saved["model"] == "model.gguf"
    assert saved["sampling"]["seed"] == 1
    assert [t["role"] for t in saved["turns"]] == ["system", "user", "assistant"]
    engine, screen = QueuedEngine("Well."), Script(f"/load {path}", "And?")
    chat(engine, screen)
    assert screen.lines[1] == f"- loaded 1 question from {path}"
    assert Letters().text(engine.prompts[0]) == (
        "«s»«|system|»Be kind.«|user|»Hello«|bot|»Hi ☃!«/s»«|user|»And?«|bot|»"
    )


def test_loading_another_models_chat_says_so(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    transcript.save(path, "other.gguf", Sampling(), [Turn("user", "Hello")])
    screen = Script(f"/load {path}")
    chat(QueuedEngine(), screen)
    assert (
        screen.lines[2] == "- they were written with 'other.gguf'; this is model.gguf"
    )


def test_saving_replaces_a_chat_but_no_other_file(tmp_path: Path) -> None:
    chat_file, other = tmp_path / "chat.json", tmp_path / "notes.txt"
    other.write_text("mine")
    script = Script(
        *(f"/save {path}" for path in (chat_file, chat_file, other, tmp_path))
    )
    chat(QueuedEngine(), script)
    assert [line[0] for line in script.lines] == list(">->->!>!>")
    assert other.read_text() == "mine"


def test_a_failed_save_leaves_the_old_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chat.json"
    transcript.save(path, "m", Sampling(), [Turn("user", "old")])

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        transcript.save(path, "m", Sampling(), [Turn("user", "new")])
    assert transcript.load(path).turns == (Turn("user", "old"),)
    assert {p.name for p in tmp_path.iterdir()} == {"chat.json", "home"}


GOOD = {"format": "ggext chat", "version": 1, "model": "m", "sampling": {}, "turns": []}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("\0\xff", id="binary"),
        pytest.param("[]", id="list"),
        pytest.param("{}", id="no format"),
        pytest.param(json.dumps(GOOD | {"version": 2}), id="newer"),
        pytest.param(json.dumps(GOOD | {"turns": {}}), id="turns no list"),
        pytest.param(json.dumps(GOOD | {"model": 1}), id="model no text"),
        pytest.param(json.dumps(GOOD | {"turns": [1]}), id="turn no object"),
        pytest.param(json.dumps(GOOD | {"turns": [{"role": "user"}]}), id="no content"),
        pytest.param(
            json.dumps(GOOD | {"turns": [{"role": [], "content": ""}]}),
            id="role a list",
        ),
        pytest.param(
            json.dumps(GOOD | {"turns": [{"role": "root", "content": ""}]}),
            id="unknown role",
        ),
        pytest.param(
            json.dumps(GOOD | {"turns": [{"role": "system", "content": ""}] * 2}),
            id="two systems",
        ),
    ],
)
def test_a_file_that_is_no_chat_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(TranscriptError, match=re.escape(str(path))):
        transcript.load(path)
