"""Painting on real terminal emulators: scripts whose widths they disagree about, and resizes."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ggext.screen import painting
from ggext.screen.region import Region

pyte = pytest.importorskip("pyte")
pytest.importorskip("rich")

HINDI = "यह एक लंबा वाक्य है जो दिखाता है कि हिंदी में चौड़ाई कैसे मापी जाती है। "
THAI = "ประเทศไทยเป็นประเทศที่มีวัฒนธรรมและอาหารที่หลากหลายและสวยงาม "
FLAGS = "Flags 🇩🇪🇫🇷🇮🇳🇯🇵 and skin 👍🏽👩🏿‍🚀👨‍👩‍👧‍👦 tones. "
COLUMNS, ROWS = 60, 12


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def everything(raw: str) -> str:
    """What a terminal shows and has scrolled away, without spaces."""
    screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
    pyte.Stream(screen).feed(raw.replace("\r\n", "\n").replace("\n", "\r\n"))
    gone = ["".join(row[x].data for x in range(COLUMNS)) for row in screen.history.top]
    return re.sub(r"\s", "", "".join([*gone, *screen.display]))


def painted(monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(painting, "_BETWEEN_PAINTS", 0.0)
    monkeypatch.setattr(painting, "time", SimpleNamespace(monotonic=lambda: 0.0))
    file = Terminal()
    console = painting.new_console(file)
    console.size = (COLUMNS, ROWS)
    answer = painting.GrowingMarkdown(console)
    for at in range(0, len(text), 3):
        answer.add(text[at : at + 3])
    answer.end()
    return file.getvalue()


# pyte's own table drops what follows a sign of no width; tmux, below, has one that holds.
@pytest.mark.parametrize("width", [lambda _: 1, lambda c: 1 if c < "\x7f" else 2])
@pytest.mark.parametrize(
    "sentence", [HINDI, THAI, FLAGS], ids=["hindi", "thai", "flags"]
)
def test_no_line_is_repeated_whatever_the_terminal_takes_for_a_width(
    monkeypatch: pytest.MonkeyPatch, sentence: str, width: Callable[[str], int]
) -> None:
    """62 copies of one line stood there, in a terminal of 60 columns."""
    monkeypatch.setattr("pyte.screens.wcwidth", width)
    first = re.sub(r"\s", "", sentence)[:9]
    shown = everything(painted(monkeypatch, 6 * sentence + "\n\nThe end."))
    assert shown.count(first) == 6
    assert shown.endswith("Theend.")


def test_a_region_leaves_what_stands_above_it_and_nothing_of_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    console = painting.new_console(file)
    console.size = (COLUMNS, ROWS)
    region = Region(console)
    console.print("above")
    for lines in (3, 30, 1, 5):  # also more than the screen has
        region.paint([console.render_lines(f"{lines} {i}")[0] for i in range(lines)])
    assert "50" in everything(file.getvalue())
    assert region.wipe()
    assert not region.wipe()
    console.print("below")
    assert everything(file.getvalue()) == "abovebelow"


SCRIPT = """
import sys, time
from ggext.screen.painting import GrowingMarkdown, new_console
text = sys.argv[1] * 5 + "\\n\\nEND"
answer = GrowingMarkdown(new_console(sys.stdout))
for i in range(0, len(text), 3):
    answer.add(text[i : i + 3])
    time.sleep(0.01)
answer.end()
print("DONE")
time.sleep(60)
"""


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
@pytest.mark.parametrize("widths", [(), (40, 70, 33)], ids=["as it is", "resized"])
def test_a_real_terminal_that_is_resized_while_an_answer_grows(
    tmp_path: Path, widths: tuple[int, ...]
) -> None:
    """tmux wraps again what stands on it; each resize may leave one painting behind, not more."""

    def tmux(*arguments: str) -> str:
        command = ["tmux", "-S", str(tmp_path / "socket"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout

    (tmp_path / "paint.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "paint.py"), HINDI]
    size = ["-x", str(COLUMNS), "-y", "20"]
    tmux("-u", "new-session", "-d", *size, "-s", "p", *command)
    try:
        for width in widths:
            time.sleep(0.4)
            tmux("resize-window", "-t", "p", "-x", str(width), "-y", "20")
        end = time.monotonic() + 30
        while "DONE" not in (shown := tmux("capture-pane", "-p", "-t", "p", "-S", "-")):
            assert time.monotonic() < end, shown
            time.sleep(0.1)
    finally:
        tmux("kill-server")
    count = re.sub(r"\s", "", shown).count("यहएकलंबा")
    assert 5 <= count <= 5 + 5 * len(widths)
    assert count == 5 or widths
