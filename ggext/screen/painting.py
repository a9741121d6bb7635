"""What stands on a screen: text without control characters, a bar, an answer in Markdown that grows
in place."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from ggext.screen.region import Region

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.segment import Segment
    from rich.text import Text

# All but line feed and tab: a model's text must not drive the terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: Tokens; shown at once, others when they turn out to take long.
_LONG_PROMPT = 2048
_LONG_WAIT = 0.7  # seconds
_BETWEEN_PAINTS = 0.05  # seconds
_BAR = 30  # columns
_FENCE = re.compile(r" {0,3}(```+|~~~+)")


class PrefillBar:
    """A bar with the time that is left, drawn only for a prompt that takes long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._region = Region(console)
        self._start = 0.0
        self._shown = False

    def update(self, done: int, total: int) -> None:
        """`done` of `total` tokens are evaluated; 0 starts the clock."""
        if done == 0:
            self._start = time.perf_counter()
        remaining = (
            (time.perf_counter() - self._start) / done * (total - done)
            if done
            else None
        )
        self._shown = self._shown or self._is_long(remaining, total)
        if self._shown:
            self._region.show(_bar(done, total, remaining))

    def stop(self) -> bool:
        """Takes the bar off the screen; whether there was one."""
        self._shown = False
        return self._region.wipe()

    def _is_long(self, remaining: float | None, total: int) -> bool:
        long = total >= _LONG_PROMPT if remaining is None else remaining > _LONG_WAIT
        return long and self._console.is_terminal


@contextmanager
def waiting(console: Console, text: str) -> Iterator[None]:
    """A block that may take long; if it does, a line on a terminal says what is waited for."""
    if not console.is_terminal:
        yield
        return
    from rich.text import Text

    region = Region(console)
    timer = threading.Timer(_LONG_WAIT, region.show, [Text(shown(text), "dim")])
    timer.daemon = True  # else the program waits for it, after a Ctrl-C
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # else it might paint after the end
        region.wipe()


class GrowingMarkdown:
    """An answer in Markdown while it is written.

    Whole blocks are printed once and never touched again; only the block that is still growing is
    painted again, at most twenty times a second and a fifth of the time, and of it no more than
    fits on the screen."""

    def __init__(self, console: Console) -> None:
        import rich.markdown  # noqa: F401 - now, while no one waits for an answer: it takes a tenth of a second

        self._console = console
        self._region = Region(console)
        self._growing = ""
        self._next = 0.0
        self._has_line = False

    def add(self, text: str) -> None:
        """The next piece."""
        self._growing += text
        start = time.monotonic()
        if start < self._next:
            return
        whole, self._growing = whole_blocks(self._growing)
        for block in filter(str.strip, whole):
            self._wipe()
            self._print(block)
        if self._growing.strip():
            self._paint()
        now = time.monotonic()
        self._next = now + max(_BETWEEN_PAINTS, 4 * (now - start))

    def end(self) -> None:
        """Prints what is left."""
        self._wipe()
        whole, rest = whole_blocks(self._growing)
        for block in filter(str.strip, [*whole, rest]):
            self._print(block)
        self._growing = ""
        self._has_line = False
        self._next = 0.0

    def _print(self, text: str) -> None:
        from rich.segment import Segment, Segments

        rows = [part for line in self._lines(text) for part in (*line, Segment.line())]
        self._console.print(Segments(rows), end="")
        self._has_line = True

    def _lines(self, text: str) -> list[list[Segment]]:
        """The lines of a block, with one blank line to what stands above."""
        lines = self._console.render_lines(_markdown(text), pad=False)
        filled = [
            i for i, line in enumerate(lines) if any(part.text.strip() for part in line)
        ]
        first, last = (filled[0], filled[-1]) if filled else (0, 0)
        return [*([[]] if self._has_line else []), *lines[first : last + 1]]

    def _paint(self) -> None:
        self._region.paint(self._lines(self._growing))

    def _wipe(self) -> None:
        self._region.wipe()


def whole_blocks(text: str) -> tuple[list[str], str]:
    """Markdown parted into the blocks that are whole and what may still grow. A block ends at a
    blank line outside a fence, when a line follows that cannot belong to a list before it."""
    blocks: list[str] = []
    block = ""
    fence = ""
    blank = False
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        goes_on = line.startswith((" ", "\t")) or (_item(line) and _item(block))
        if blank and not fence and line.strip() and not goes_on:
            blocks.append(block)
            block = ""
        if mark and not fence:
            fence = mark[1]
        elif mark and line.strip() == mark[1] and mark[1].startswith(fence):
            fence = ""
        blank = not line.strip()
        block += line
    return blocks, block


def _item(line: str) -> bool:
    """Whether a list item begins here, or may, once more of the line is there."""
    return re.match(r"[-*+](\s|$)|\d{1,9}([.)](\s|$)|$)", line) is not None


def shown(text: str) -> str:
    """The text without control characters, which could move the cursor or worse."""
    return _CONTROL.sub("\ufffd", text)


def write(text: str) -> None:
    """Writes to the standard output at once, without control characters if it is a terminal."""
    out = sys.stdout
    text = shown(text) if out.isatty() else text
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding))
    out.flush()


def new_console(file: IO[str]) -> Console:
    """A console that takes text literally."""
    from rich.console import Console
    from rich.theme import Theme

    # rich paints code in a sentence on black, which stands out on a light terminal
    theme = Theme({"markdown.code": "cyan"})
    return Console(file=file, highlight=False, markup=False, emoji=False, theme=theme)


def _markdown(text: str) -> RenderableType:
    from markdown_it import MarkdownIt
    from rich.markdown import Heading, Markdown

    class PlainHeading(Heading):
        """Bold at the left; rich draws boxes and centres."""

        def __rich_console__(self, *_: object) -> list[Text]:
            self.text.justify = "left"
            self.text.stylize("bold")
            return [self.text]

    class Answer(Markdown):
        elements = Markdown.elements | {"heading_open": PlainHeading}

    answer = Answer("", code_theme="ansi_dark", hyperlinks=False)
    # rich parses with HTML and then leaves it out: of "a vector<int> is" it would show "a vector
    # is".
    answer.parsed = (
        MarkdownIt("commonmark", {"html": False})
        .enable(["strikethrough", "table"])
        .parse(shown(text))
    )
    for token in answer.parsed:
        for child in token.children or ():
            if (
                child.type == "softbreak"
            ):  # a model that ends a line means it: verses, addresses
                child.type = "hardbreak"
    return answer


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} left"


def _bar(done: int, total: int, remaining: float | None) -> Text:
    from rich.text import Text

    filled = round(_BAR * done / total) if total else _BAR
    bar = Text("reading ", no_wrap=True, overflow="crop")
    bar.append("━" * filled, "green").append("━" * (_BAR - filled), "dim")
    return bar.append(f" {done}/{total} tokens {_clock(remaining)}")
