"""What the screens show: control characters, progress, growing Markdown, completion."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from terminal import lines_on_screen

from ggext.screen import painting
from ggext.screen.painting import shown
from ggext.screen.terminal import PlainScreen

if TYPE_CHECKING:
    pass
pytest.importorskip("rich")


def test_control_characters_never_reach_the_terminal() -> None:
    assert shown("a\x1b[2Jb\r\x9b\x07\n\tcé☃") == "a�[2Jb���\n\tcé☃"


def test_a_plain_screen_keeps_the_answer_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo"))
    screen = PlainScreen()
    lines = [screen.read(), screen.read(), screen.read()]
    screen.notice("N")
    screen.progress(0, 10_000)
    screen.progress(5000, 10_000)
    for piece in ("an", "swer\x1b"):
        screen.answer(piece)
    screen.end_answer()
    screen.error("E")
    assert lines == ["one", "two", None]
    assert capsys.readouterr() == ("answer\x1b\n", "> > > N\nE\n")


def test_an_encoding_that_lacks_a_character_gets_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        painting.write("Zoë ☃")
    assert raw.getvalue() == b"Zo? ?"


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("after", "is_shown"), [(0.0, True), (60.0, False)])
def test_what_takes_long_is_said_and_taken_off(
    monkeypatch: pytest.MonkeyPatch, after: float, is_shown: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(painting, "_LONG_WAIT", after)
    file = Terminal()
    with painting.waiting(painting.new_console(file), "loading \x1b[31mx.gguf"):
        deadline = time.monotonic() + 10
        while (
            is_shown
            and "loading" not in file.getvalue()
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
    assert ("loading \ufffd[31mx.gguf" in file.getvalue()) is is_shown
    assert file.getvalue().endswith("\x1b[?25h" if is_shown else "")


@pytest.mark.parametrize(
    ("total", "seconds", "bar_at"),
    [
        pytest.param(1024, 0.01, None, id="fast: none"),
        pytest.param(1024, 30.0, 256, id="slow: once that is known"),
        pytest.param(4096, 30.0, 0, id="long: at once"),
    ],
)
def test_a_bar_is_drawn_for_a_prompt_that_takes_long(
    total: int, seconds: float, bar_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    bar = painting.PrefillBar(painting.new_console(file))
    for done in (0, 256, 512):
        clock = SimpleNamespace(perf_counter=lambda now=done / 256 * seconds: now)
        monkeypatch.setattr(painting, "time", clock)
        bar.update(done, total)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert bar.stop() is (bar_at is not None)
    if bar_at is not None:
        assert text.index(f"{bar_at}/{total} tokens") < text.index(
            f"512/{total} tokens"
        )
        minutes = (total - 512) * 30 // 256 // 60
        assert f"512/{total} tokens {minutes}:00 left" in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One.\n\nTwo", ["One.\n\n", "Two"]),
        ("One.\n\n", ["One.\n\n"]),
        ("One.\nTwo.", ["One.\nTwo."]),
        ("One.\n\n\nTwo.\n\nThree", ["One.\n\n\n", "Two.\n\n", "Three"]),
        ("- a\n\n- b\n\nEnd", ["- a\n\n- b\n\n", "End"]),
        ("1. a\n\n2", ["1. a\n\n2"]),
        ("Text:\n\n- a", ["Text:\n\n", "- a"]),
        ("> a\n\n> b", ["> a\n\n", "> b"]),
        ("1. a\n\n1986 was", ["1. a\n\n", "1986 was"]),
        ("Text\n\n**bold", ["Text\n\n", "**bold"]),
        ("```\na\n\nb\n```\n\nEnd", ["```\na\n\nb\n```\n\n", "End"]),
        ("```\na\n\nb", ["```\na\n\nb"]),
        ("````\n```\n\nb\n````\n\nEnd", ["````\n```\n\nb\n````\n\n", "End"]),
        ("- a\n\n  more\n\nEnd", ["- a\n\n  more\n\n", "End"]),
    ],
)
def test_blocks_of_markdown_are_whole_when_nothing_can_join_them(
    text: str, parts: list[str]
) -> None:
    assert painting.whole_blocks(text) == (parts[:-1], parts[-1])


MARKDOWN = (
    "# Plan\n\nFirst *line*\nsecond **line**.\n\n- one\n- "
    "two\n\n```python\nprint('x')\n\nprint('y')\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\nMuch of vector<int>.\n\nThe end.\x1b[2J"
)


def paint(monkeypatch: pytest.MonkeyPatch, text: str, step: int) -> list[str]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(painting, "_BETWEEN_PAINTS", 0.0)
    monkeypatch.setattr(painting, "time", SimpleNamespace(monotonic=lambda: 0.0))
    file = Terminal()
    console = painting.new_console(file)
    console.size = (60, 12)
    answer = painting.GrowingMarkdown(console)
    for at in range(0, len(text), step):
        answer.add(text[at : at + step])
    answer.end()
    return lines_on_screen(file.getvalue(), 60)


def test_markdown_grows_into_what_it_is_when_printed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    at_once = Console(width=60, file=io.StringIO(), color_system=None)
    at_once.print(painting._markdown(MARKDOWN))
    assert isinstance(at_once.file, io.StringIO)
    wanted = [line.rstrip() for line in at_once.file.getvalue().splitlines()]
    wanted = [
        line
        for line, before in zip(wanted, ["", *wanted], strict=False)
        if line or before
    ]  # no two blank lines
    for step in (1, 7, 1000):
        assert paint(monkeypatch, MARKDOWN, step)[: len(wanted)] == wanted
    assert any("of vector<int>" in line for line in wanted)  # no HTML is taken out
    assert "First line" in wanted  # a line that a model ended stays a line
    assert "The end.�[2J" in wanted


def test_a_block_taller_than_the_screen_is_whole_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "\n".join(f"- item {i}" for i in range(40))
    painted = paint(monkeypatch, text, 5)
    assert [line.strip() for line in painted if line] == [
        f"• item {i}" for i in range(40)
    ]


def test_reasoning_is_folded_into_one_line_or_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ggext.screen.terminal import AnswerScreen

    for show, wanted in (
        (False, ["thought for 0 s, 3 words", "", "Yes."]),
        (True, ["Hm, well, so, what?", "", "Yes."]),
    ):
        file = Terminal()
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setenv("TERM", "xterm")
        screen = AnswerScreen()
        screen.show_thoughts = show
        for piece in ("Hm, ", "well, ", "so, ", "what?"):
            screen.thought(piece)
        screen.answer("Yes.")
        screen.end_answer()
        assert lines_on_screen(file.getvalue())[:3] == wanted


def test_completion_offers_commands_settings_and_paths(tmp_path: Path) -> None:
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from ggext.screen.keyboard import new_completer

    (tmp_path / "book.txt").touch()

    def offered(text: str) -> list[str]:
        return [
            c.text
            for c in new_completer().get_completions(Document(text), CompleteEvent())
        ]

    assert offered("/re") == ["/regen"]
    assert "/quit" in offered("/")
    assert offered("/set te") == ["temperature"]
    assert offered("/when-full la") == ["landmark"]
    assert offered(f"/file {tmp_path}/bo") == ["ok.txt"]
    assert offered("what is /re") == []
    assert offered("/system be") == []
