"""Chats that are kept by themselves: their names, and which stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_chat import QueuedEngine, Script, chat
from kept_chats import reread

from ggext.chat.session import Keeper, autosaved, named
from ggext.chat.transcript import Turn
from ggext.errors import OutputError, UsageError
from ggext.folders import state_folder

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")


def test_names_of_sessions() -> None:
    assert named("my book").parent == state_folder() / "sessions"
    for name in ("", "..", ".x", "a/b", "a\\b", "a\nb"):
        with pytest.raises(UsageError, match="cannot name a session"):
            named(name)


def said(folder: Path, text: str = "hello") -> Path:
    with Keeper(folder, "model.gguf", None) as keeper:
        keeper.record([Turn("user", text)])
    return folder


def test_of_chats_without_a_name_those_used_last_stay() -> None:
    chats = [said(autosaved()) for _ in range(22)]
    assert len(list(chats[0].parent.iterdir())) == 20
    for day, folder in enumerate(chats[2:]):
        for path in (folder, folder / "chat.jsonl"):
            os.utime(path, (86_400 * day, 86_400 * day))
    with Keeper(chats[2], "model.gguf", None) as keeper:  # the oldest is continued
        keeper.record([Turn("user", "again")])
    (chats[0].parent / "mine").mkdir()
    named_alike = said(named("autosave-2020-notes"))
    newest = said(autosaved())
    left = set(chats[0].parent.iterdir())
    assert left == {chats[2], *chats[4:], newest, named_alike, chats[0].parent / "mine"}


def test_clean_up_takes_no_chat_that_is_open() -> None:
    with Keeper(autosaved(), "model.gguf", None) as first:
        first.record([Turn("user", "my long chat")])
        folder = named(first.name)
        os.utime(folder / "chat.jsonl", (1, 1))
        os.utime(folder, (1, 1))
        for _ in range(21):
            said(autosaved())
        assert (
            first.record([Turn("user", "my long chat"), Turn("assistant", "more")])
            == ""
        )
    assert len(reread(folder / "chat.jsonl")) == 2


def test_clean_up_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    foreign = named("work")
    foreign.mkdir(parents=True)
    (foreign / "my notes.txt").write_text("mine")
    with Keeper(foreign, "model.gguf", None):
        pass
    assert [path.name for path in foreign.iterdir()] == ["my notes.txt"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".unnamed").touch()
    link = foreign.parent / "autosave-20200101-000000-abcdef"
    link.symlink_to(tmp_path / "elsewhere")
    for _ in range(22):
        said(autosaved())
    assert link.exists()


def test_leaving_an_empty_chat_takes_nothing_from_one_that_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second waits for the lock, and gets it when the first has removed the folder."""
    first = Keeper(named("r"), "model.gguf", None)
    real, begun = os.close, []

    def close(handle: int) -> None:
        real(handle)
        if not begun and not named("r").exists():
            begun.append(handle)
            begun.append(Keeper(named("r"), "model.gguf", None))

    with monkeypatch.context() as patch:
        patch.setattr("os.close", close)
        first.close()
    second = begun[1]
    second.record([Turn("user", "precious")])
    second.close()
    assert len(reread(named("r") / "chat.jsonl")) == 1


def test_a_chat_is_kept_while_it_goes_on() -> None:
    folder = named("crown")
    with Keeper(folder, "model.gguf", None) as keeper:
        seen: list[int] = []
        screen = Script("Hello", "And?", "/undo", "/set seed 3")
        screen.interrupt_at = "i"
        engine = QueuedEngine("Hi!", "Well.")
        original = screen.answer

        def answer(
            text: str,
        ) -> None:  # the question is on disk before its answer begins
            seen.append((folder / "chat.jsonl").read_text().count('"role": "user"'))
            original(text)

        screen.answer = answer  # type: ignore[method-assign]
        chat(engine, screen, keeper=keeper)
    assert seen[0] == 1
    assert [turn.content for turn in reread(folder / "chat.jsonl")] == ["Hello", "Hi"]


def test_a_disk_that_fills_up_ends_the_keeping_not_the_chat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Keeper(named("full"), "model.gguf", None) as keeper:

        def full(_turns: object, _left: int) -> None:
            raise OutputError(
                "chat.jsonl: No space left on device; the chat is not being kept"
            )

        monkeypatch.setattr(keeper, "record", full)
        screen = Script("Hello", "And?")
        conversation = chat(QueuedEngine("Hi!", "Well."), screen, keeper=keeper)
    assert [line for line in screen.lines if line.startswith("!")] == [
        (
            "! chat.jsonl: No space left on device; the chat is not being kept; /save FILE keeps it "
            "elsewhere"
        )
    ]
    assert len(conversation.turns) == 4


def test_a_chat_in_which_nothing_was_said_leaves_nothing() -> None:
    with Keeper(named("empty"), "model.gguf", None):
        pass
    assert list((state_folder() / "sessions").iterdir()) == []
