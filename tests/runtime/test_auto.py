"""``when_full="auto"``: what is chosen for which model, memory and question."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext import Model as Program
from ggext.demo import sample_text
from ggext.footprint import machine
from ggext.runtime import auto, capacity
from ggext.runtime.engine import Model, SessionOptions
from ggext.runtime.prefixes import Prefixes

OPTIONS = SessionOptions(n_ctx=1024, n_batch=64)


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    with Model.open(demo_gguf) as model:
        yield model


def chosen(model: Model, text: int = 0, **options: Any) -> str:
    """The policy, which the session has."""
    wanted = SessionOptions(**{"n_ctx": 1024, "n_batch": 64} | options)
    session, choice = auto.open_session(model, wanted, Prefixes(), text)
    with session:
        assert session.options.memory.when_full == choice.engine
        assert choice.sentence.startswith(
            f"when the context is full: {choice.policy}, for "
        )
        return choice.policy


def test_a_chat_leaves_turns_out_where_reading_the_others_again_is_quick(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(model) == "turns"
    monkeypatch.setattr(auto, "_PATIENCE", 0.0)
    assert chosen(model) == "stream"


def test_a_text_without_turns_streams(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "chat_template", None)
    assert chosen(model) == "stream"


@pytest.mark.parametrize(("text", "policy"), [(700, "turns"), (800, "landmark")])
def test_a_text_that_fits_needs_nothing_and_a_longer_one_is_looked_up(
    model: Model, text: int, policy: str
) -> None:
    assert chosen(model, text) == policy


def test_where_the_memory_does_not_hold_a_text_what_stands_out_of_it_stays(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(model, 100_000_000_000) == "compress"
    monkeypatch.setattr(capacity, "free_memory", lambda: None)  # no one knows
    assert machine.free_memory is not capacity.free_memory
    assert chosen(model, 100_000_000_000) == "landmark"


def test_what_cannot_be_moved_is_read_again(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggext.errors import ModelError
    from ggext.runtime.memory import compress, landmark, stream

    def refuse(*_: object) -> None:
        raise ModelError("its keys cannot be moved")

    for module in (compress, landmark, stream):
        monkeypatch.setattr(module, "require_movable", refuse)
    assert chosen(model, 5000) == "recompute"
    monkeypatch.setattr(auto, "_PATIENCE", 0.0)
    assert chosen(model) == "turns"


@pytest.mark.parametrize("isolated", [False, True])
def test_a_program_may_leave_it_open(demo_gguf: Path, isolated: bool) -> None:
    with Program(
        demo_gguf, context=256, when_full="auto", isolated=isolated
    ) as program:
        assert program.when_full == "turns"
        turns = [{"role": "user", "content": "Tom hides the map below. " * 6}]
        left = 0
        for _ in range(6):
            reply = program.chat(turns, sampling={"temperature": 0}, max_tokens=20)
            turns += [{"role": "assistant", "content": reply.text()}, turns[0]]
            left += len(reply.left)
        assert left > 0


def test_a_chat_says_in_one_line_what_it_chose(demo_gguf: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(sample_text(2500))
    command = [sys.executable, "-m", "ggext", "chat", str(demo_gguf), "-f", str(book)]
    done = subprocess.run(
        [
            *command,
            "-p",
            "Where is the map?",
            "--ctx",
            "1024",
            "--when-full",
            "auto",
            "-n",
            "5",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [
        line for line in done.stderr.splitlines() if "when the context is full" in line
    ]
    assert len(lines) == 1
    assert "landmark, for the text of some" in lines[0]
