"""Documents in the turns of a chat."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_chat import QueuedEngine, Script, chat

from ggext.chat.conversation import with_documents


def test_a_document_goes_into_the_next_turn_and_only_there(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("Facts.")
    engine = QueuedEngine("1", "2")
    screen = Script(f"/file '{tmp_path}/a b.txt'", "What?", "Why?")
    conversation = chat(engine, screen)
    assert screen.lines[1] == (
        f"- {tmp_path}/a b.txt: 6 tokens go into the next turn; 1,000 are available"
    )
    assert [t.content for t in conversation.turns] == [
        "Facts.\nWhat?",
        "1",
        "Why?",
        "2",
    ]


def test_a_document_is_read_while_its_question_is_typed(tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text("All cats are grey.")
    screen, notes = Script(f"/file {tmp_path}/doc.txt", "Are they?", "Sure?"), []

    def wait_until_read(note: Callable[[], str]) -> None:
        end = time.monotonic() + 30
        while not note().startswith("the document is read") and time.monotonic() < end:
            time.sleep(0.001)
        notes.append(note())

    screen.noted = wait_until_read
    engine = QueuedEngine("Yes.", "Sure.")
    chat(engine, screen)
    assert notes == [
        "the document is read but for its last tokens, which the question decides"
    ]
    assert "read 11 and 20 while you typed, reused 0" in screen.text
    assert "read 8, reused 35" in screen.text


def test_clearing_is_not_offered_where_it_frees_nothing(tmp_path: Path) -> None:
    """What was read ahead of the turn itself counted as what /clear and turns would free."""
    (tmp_path / "doc.txt").write_text("x" * 40)
    screen = Script(f"/file {tmp_path}/doc.txt", "y" * 20)

    def wait_until_read(note: Callable[[], str]) -> None:
        end = time.monotonic() + 30
        while not note().startswith("the document is read") and time.monotonic() < end:
            time.sleep(0.001)

    screen.noted = wait_until_read
    engine = QueuedEngine(n_ctx=50)
    chat(engine, screen)
    assert engine.used == 40
    assert (
        "! this turn has 64 tokens, 14 more than the context of 50 holds."
        in screen.text
    )
    assert "/clear starts over" not in screen.text
    assert "/when-full turns" not in screen.text


@pytest.mark.parametrize(("length", "drop_turns"), [(1200, False), (900, True)])
def test_a_document_that_does_not_fit_as_things_are_is_not_read_ahead(
    tmp_path: Path, length: int, drop_turns: bool
) -> None:
    """900 would fit, but not next to what is kept free for the answer: turns would leave."""
    (tmp_path / "doc.txt").write_text("x" * length)
    conversation = chat(
        QueuedEngine(), Script(f"/file {tmp_path}/doc.txt"), drop_turns=drop_turns
    )
    assert conversation.certain("x" * length) == []
    assert conversation.engine.used == 0


def test_a_document_that_does_not_fit_waits_until_cleared(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 100)
    screen = Script(f"/file {tmp_path}/long.txt", "What?", "/clear", "Who?")
    conversation = chat(QueuedEngine("I.", n_ctx=50), screen)
    assert (
        "- the document still waits for the next turn; /clear takes it out"
        in screen.lines
    )
    assert [turn.content for turn in conversation.turns] == ["Who?", "I."]


def test_a_document_ends_its_line() -> None:
    assert with_documents(["a", "c\n"], "b") == "a\nc\nb"
    assert with_documents(["a\n\n"], "b") == "a\n\nb"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
    ],
)
def test_a_document_that_is_no_text_is_refused(
    tmp_path: Path, data: bytes | None, message: str
) -> None:
    if data is not None:
        (tmp_path / "doc").write_bytes(data)
    screen = Script(f"/file {tmp_path}/doc")
    chat(QueuedEngine(), screen)
    assert re.search(message, screen.lines[1])
    assert screen.lines[1].startswith("!")
