"""Chats that are kept: they come back as they were; the list of them; places that cannot be
written."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("rich")

from click.testing import CliRunner, Result
from fake_chat import Script

from ggext.chat import kept_settings, session
from ggext.chat.kept_settings import KeptSettings
from ggext.chat.session import Keeper, named
from ggext.chat.transcript import Turn
from ggext.cli import main
from ggext.errors import OutputError

GREEDY = ("--temperature", "0", "--max-tokens", "4")


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def keep(name: str, *questions: str, settings: KeptSettings | None = None) -> Path:
    turns = [
        turn
        for text in questions
        for turn in (Turn("user", text), Turn("assistant", "Yes."))
    ]
    with Keeper(named(name), "model.gguf", None) as keeper:
        keeper.record(turns)
        if settings is not None:
            keeper.keep_settings(settings)
    return named(name)


def test_a_kept_chat_comes_back_as_it_was(demo_gguf: Path) -> None:
    """--session restored neither sampling nor --max-tokens, --ctx nor --when-full."""
    options = (
        *GREEDY,
        "--ctx",
        "400",
        "--when-full",
        "turns",
        "--seed",
        "3",
        "--stop",
        "x",
    )
    assert (
        ggext("chat", demo_gguf, "-p", "Where?", "--session", "a", *options).exit_code
        == 0
    )
    again = ggext("chat", demo_gguf, "-p", "Why?", "--session", "a", "--seed", "4")
    assert again.exit_code == 0
    assert (
        "with what it had: temperature 0.0, max-tokens 4, stop 'x', when-full turns, ctx 400"
        in again.stderr
    )
    kept = kept_settings.load(named("a"))
    assert kept is not None
    assert (kept.seed, kept.max_tokens, kept.ctx, kept.when_full) == (
        4,
        4,
        400,
        "turns",
    )
    assert kept.model == str(demo_gguf)


def test_the_last_chat_goes_on_without_its_file(demo_gguf: Path) -> None:
    ggext("chat", demo_gguf, "-p", "Where?", "--session", "a", *GREEDY)
    keep("b", "Older?")
    old = named("b") / "chat.jsonl"
    os.utime(old, (1, 1))
    done = ggext("chat", "-c", "And", "why?")
    assert done.exit_code == 0, done.output
    turns = session.read_only("a")
    assert [turn.content for turn in turns if turn.role == "user"] == [
        "Where?",
        "And why?",
    ]


def test_a_number_after_c_is_a_context(demo_gguf: Path) -> None:
    done = ggext("chat", demo_gguf, "-c", "256", "Where?", *GREEDY, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["context"]["allocated"] == 256


def test_words_of_llama_cli(demo_gguf: Path) -> None:
    short = (
        "-m",
        demo_gguf,
        "-n",
        "4",
        "-t",
        "1",
        "-ngl",
        "0",
        "--temp",
        "0",
        "-s",
        "1",
    )
    done = ggext("chat", *short, "Where", "is it?")
    long = ggext("chat", demo_gguf, "-p", "Where is it?", *GREEDY)
    assert done.exit_code == long.exit_code == 0
    assert done.stdout == long.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["chat"], "Missing argument 'FILE'"),
        (["chat", "nothing.gguf"], "nothing.gguf: there is no such file"),
        (["chat", "-c"], "there is no chat to go on with"),
        (["chat", "x.gguf", "-p", "a", "-p", "b"], "-p asks one question, not 2"),
        (
            ["chat", "x.gguf", "-p", "a", "b"],
            "-p and 'b' are both a question: give one",
        ),
        (["chats", "delete", "nothing"], "there is no chat nothing"),
        (["chats", "rename", "nothing", "x"], "there is no chat nothing"),
        (["chats", "export", "nothing", "x.md"], "there is no chat nothing"),
    ],
)
def test_what_is_not_there_is_said(arguments: list[str], problem: str) -> None:
    done = ggext(*arguments)
    assert done.exit_code == 2
    assert problem in done.stderr


def test_an_empty_question_is_said(demo_gguf: Path) -> None:
    """It was a ValueError."""
    done = ggext("chat", demo_gguf, "-p", "")
    assert done.exit_code == 2
    assert "there is no question: -p is empty" in done.stderr


def test_chats_are_listed_renamed_exported_and_deleted(tmp_path: Path) -> None:
    assert "no chat is kept" in ggext("chats").output
    keep("old", "Where is the crown?", "Why?", settings=KeptSettings(temperature=0.5))
    os.utime(named("old") / "chat.jsonl", (0, 0))
    keep("new", "x" * 90)
    lines = ggext("chats", "list").output.splitlines()
    assert [line.split()[0] for line in lines] == ["new", "old"]
    assert lines[1].endswith("2 questions, model.gguf: Where is the crown?")
    assert ggext("chats", "rename", "old", "new").exit_code == 2
    assert ggext("chats", "rename", "old", "crown").exit_code == 0
    assert ggext("chats", "export", "crown", tmp_path / "a.md").exit_code == 0
    assert "**User**\n\nWhere is the crown?" in (tmp_path / "a.md").read_text()
    assert ggext("chats", "export", "crown", tmp_path / "a.json").exit_code == 0
    assert (
        json.loads((tmp_path / "a.json").read_text())["sampling"]["temperature"] == 0.5
    )
    assert ggext("chats", "delete", "crown", "new").exit_code == 0
    assert "no chat is kept" in ggext("chats").output


def test_a_chat_that_is_open_is_left_alone() -> None:
    keep("a", "Hi")
    with Keeper(named("a"), "model.gguf", None):
        for arguments in (("delete", "a"), ("rename", "a", "b")):
            done = ggext("chats", *arguments)
            assert done.exit_code == 1
            assert "is open in another ggext" in done.stderr
    assert named("a").exists()


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"temperature": "hot"}', '{"ctx": []}', "\0", '{"stop": [1]}']
)
def test_damaged_settings_are_the_defaults(damage: str) -> None:
    (keep("a", "Hi") / "settings.json").write_text(damage)
    assert session.kept_chat("a") is None


@pytest.fixture(params=["a folder that cannot be made", "no home"])
def nowhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no home":
        for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)

        def no_entry(_: int) -> Any:
            raise KeyError

        monkeypatch.setattr("pwd.getpwuid", no_entry)
    else:
        monkeypatch.setenv("XDG_STATE_HOME", "/proc/nothing")
    return str(request.param)


def test_where_nothing_can_be_written_the_chat_goes_on(
    demo_gguf: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ggext("chat", demo_gguf, "-p", "Where?", "--session", "a", *GREEDY)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()
    said = (
        "there is no home folder"
        if nowhere == "no home"
        else "the chat is not being kept"
    )
    assert said in done.stderr
    assert not list(tmp_path.glob("~*"))


def test_a_full_disk_ends_what_is_kept_and_not_the_chat(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    done = ggext("chat", demo_gguf, "-p", "Where?", "--session", "a", *GREEDY)
    assert done.stdout.strip()
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.output


def test_what_cannot_be_written_is_read_all_the_same(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep("a", "Where is the crown?")

    def read_only(*_: Any) -> None:
        raise OutputError(
            "chat.jsonl: Read-only file system; the chat is not being kept"
        )

    monkeypatch.setattr("ggext.chat.session.Journal", read_only)
    done = ggext("chat", demo_gguf, "-p", "Why?", "--session", "a", *GREEDY)
    assert done.exit_code == 0
    assert "what was kept of it is read, what is said now is not kept" in done.stderr


def converse(
    monkeypatch: pytest.MonkeyPatch, arguments: list[object], *typed: str
) -> list[str]:
    """What `ggext chat` shows for typed lines, over the real engine."""
    from ggext.cli.chat_input import ChatInput
    from ggext.screen import terminal

    screen = Script(*typed)
    monkeypatch.setattr(
        "ggext.cli.chat.parse_input", lambda *_, **__: ChatInput(None, (), is_chat=True)
    )
    monkeypatch.setattr(terminal, "open_screen", lambda _: screen)
    main.main(["chat", *map(str, arguments)], standalone_mode=False)
    return screen.lines


def test_the_context_is_opened_again_in_a_running_chat(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both needed a restart, and no command was printed."""
    lines = converse(
        monkeypatch,
        [demo_gguf, "--ctx", "400", "--session", "a", *GREEDY],
        "Where is the map?",
        "/ctx 1k",
        "Why?",
        "/ctx 4000G",
        "/ctx 99999999999",
        "/when-full stream",
        "And?",
        "/when-full turns",
        "/ctx",
    )
    text = "\n".join(lines)
    assert "- the context is 1,024 tokens" in lines
    reused = [int(match) for match in re.findall(r"reused (\d+)", text)]
    assert reused[0] == 0
    assert min(reused[1:]) > 10  # what was cached went along
    assert any("'4000G' is not a number of tokens" in line for line in lines)
    # It was: n_ctx is 99999999999, but must be at least 1.
    assert "! /ctx is 99999999999, but must be at most 2147483647" in lines
    assert "- when the context is full: stream" in lines
    assert "- when the context is full: turns" in lines
    assert any("the context is 1,024 tokens; /ctx N" in line for line in lines)
    kept = kept_settings.load(named("a"))
    assert kept is not None
    assert (kept.ctx, kept.when_full) == (1024, "turns")


def test_a_context_that_cannot_be_made_leaves_the_one_that_is_there(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = converse(
        monkeypatch,
        [demo_gguf, "--ctx", "400", "--no-autosave", *GREEDY],
        "Where is the map?",
        "/ctx 1000M",
        "Why?",
    )
    assert [line[0] for line in lines if line[0] in "<!"] == ["<", "!", "<"]
