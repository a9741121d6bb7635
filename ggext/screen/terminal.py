"""A chat on a terminal, and on plain files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.screen.flags import in_flags
from ggext.screen.interrupt import on_interrupt
from ggext.screen.painting import (
    GrowingMarkdown,
    PrefillBar,
    new_console,
    shown,
    waiting,
    write,
)
from ggext.screen.region import Region

if TYPE_CHECKING:
    from prompt_toolkit.formatted_text import AnyFormattedText
    from rich.console import Console

    from ggext.chat.screens import Screen, Status

_BETWEEN_COUNTS = 0.25  # seconds


def open_screen(history: Path | None) -> Screen:
    """A full screen on a terminal, which remembers what was typed in ``history``; plain lines where
    input or output is something else."""
    return (
        ChatScreen(history)
        if _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
        else PlainScreen()
    )


def answer_screen() -> Screen:
    """For one answer: painted on a terminal, else plain text."""
    return AnswerScreen() if _is_terminal(sys.stdout) else PlainScreen()


def _is_terminal(file: object) -> bool:
    return (
        bool(getattr(file, "isatty", lambda: False)())
        and os.environ.get("TERM") != "dumb"
    )


class PlainScreen:
    """The answer alone on the standard output, all else on the standard error."""

    def __init__(self) -> None:
        self.show_thoughts = False
        self.markdown = True  # where it can be painted
        self.console = new_console(sys.stderr)
        self._bar = PrefillBar(self.console)
        self._column = 0

    def read(self, note: Callable[[], str] | None = None) -> str | None:  # noqa: ARG002 - there is no place for it
        """The next line, None at the end of the input."""
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None

    def notice(self, text: str) -> None:
        """A sentence for the user."""
        self._print(in_flags(text), "dim")

    def error(self, text: str) -> None:
        """What went wrong."""
        self._print(in_flags(text), "red")

    def status(self, status: Status) -> None:
        """The line after a turn, where someone sees it."""
        if self.console.is_terminal:
            self._print(str(status), "dim")

    def progress(self, done: int, total: int) -> None:
        """A bar for a prompt that takes long."""
        self._bar.update(done, total)

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """A line while the block takes long."""
        return waiting(self.console, text)

    def thought(self, text: str) -> None:
        """The reasoning, on the standard error if at all."""
        self._bar.stop()
        if self.show_thoughts:
            self.console.print(shown(text), style="dim", end="", soft_wrap=True)

    def answer(self, text: str) -> None:
        """The next piece of the answer; control characters reach a file, but no terminal."""
        if self._bar.stop():
            self._column = 0
        write(text)
        self._column = 0 if text.endswith("\n") else 1

    def end_answer(self) -> None:
        """Ends the answer's last line."""
        if self._bar.stop():
            self._column = 0
        if self._column:
            write("\n")
            self._column = 0

    def interrupts(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """A block in which Ctrl-C calls `cancel`."""
        return on_interrupt(cancel)

    def _print(self, text: str, style: str) -> None:
        self.console.print(
            shown(text), style=style, soft_wrap=not self.console.is_terminal
        )


class AnswerScreen(PlainScreen):
    """Answers on a terminal, in Markdown unless that is turned off; reasoning is folded into one
    line that counts, or shown dimmed."""

    def __init__(self) -> None:
        super().__init__()
        self.console = new_console(sys.stdout)
        self._bar = PrefillBar(self.console)
        self._answer = GrowingMarkdown(self.console)
        self._thoughts = FoldedThoughts(self)

    def thought(self, text: str) -> None:
        """The next piece of the reasoning."""
        self._bar.stop()
        self._thoughts.add(text)

    def answer(self, text: str) -> None:
        """The next piece of the answer."""
        self._bar.stop()
        self._thoughts.end()
        if self.markdown:
            self._answer.add(text)
        else:
            super().answer(text)

    def end_answer(self) -> None:
        """The answer is over."""
        self._bar.stop()
        self._thoughts.end()
        self._answer.end()
        super().end_answer()

    @contextmanager
    def interrupts(self, cancel: Callable[[], None]) -> Iterator[None]:
        """A block in which Ctrl-C calls `cancel`; what is typed meanwhile does not show."""
        with _no_echo(), on_interrupt(cancel):
            yield

    def say(self, text: str, *, end: str = "\n") -> None:
        """Dimmed text."""
        self.console.print(shown(text), style="dim", end=end, soft_wrap=True)


class FoldedThoughts:
    """The reasoning before an answer: a line that counts, or its text."""

    def __init__(self, screen: AnswerScreen) -> None:
        self._screen = screen
        self._region = Region(screen.console)
        self._words = 0
        self._started_at = 0.0
        self._painted = 0.0
        self._line = True

    def add(self, text: str) -> None:
        """The next piece."""
        from rich.text import Text

        now = time.monotonic()
        if not self._started_at:
            self._started_at = now
        self._words += text.count(" ")
        if self._screen.show_thoughts:
            self._screen.say(text, end="")
            self._line = text.endswith("\n")
        elif now - self._painted > _BETWEEN_COUNTS:
            self._painted = now
            self._region.show(
                Text(self._count("thinking"), "dim", no_wrap=True, overflow="crop")
            )

    def end(self) -> None:
        """The reasoning is over, if there was any."""
        if not self._started_at:
            return
        if self._screen.show_thoughts:
            end = "" if self._line else "\n"
            self._screen.say(end)
        else:
            self._region.wipe()
            self._screen.say(f"{self._count('thought')}\n")
        self._words = 0
        self._started_at = 0.0
        self._painted = 0.0
        self._line = True

    def _count(self, verb: str) -> str:
        return f"{verb} for {time.monotonic() - self._started_at:.0f} s, {self._words:,} words"


_PASTES, _NO_PASTES = "\x1b[?2004h", "\x1b[?2004l"


class ChatScreen(AnswerScreen):
    """A terminal with line editing, history, completion and pasted blocks; Alt-Enter begins a new
    line."""

    def __init__(self, history: Path | None) -> None:
        from ggext.screen.keyboard import new_keyboard

        super().__init__()
        self._keyboard = new_keyboard(history)

    def read(self, note: Callable[[], str] | None = None) -> str | None:
        """The next input, None for Ctrl-D, with ``note`` above it. Ctrl-C drops what was typed,
        else KeyboardInterrupt."""
        self.console.print()

        def message() -> AnyFormattedText:
            above = (
                note() if note is not None and not self._keyboard.app.is_done else ""
            )
            return [("class:note", f"{above}\n" if above else ""), ("", "> ")]

        self._keyboard.refresh_interval = 0 if note is None else _BETWEEN_COUNTS
        try:
            return self._keyboard.prompt(message)
        except EOFError:
            return None
        except KeyboardInterrupt:
            if self._keyboard.default_buffer.text:
                return ""
            raise

    @contextmanager
    def interrupts(self, cancel: Callable[[], None]) -> Iterator[None]:
        """A block in which Ctrl-C calls `cancel`. What is pasted meanwhile keeps its marks, by
        which the next prompt takes it as one block, and so one turn."""
        write_control(self.console, _PASTES)
        try:
            with super().interrupts(cancel):
                yield
        except BaseException:
            write_control(self.console, _NO_PASTES)
            raise


def write_control(console: Console, sequence: str) -> None:
    """Tells the terminal something that is no text."""
    console.file.write(sequence)
    console.file.flush()


@contextmanager
def _no_echo() -> Iterator[None]:
    """The terminal does not repeat what is typed, ^C included; the keys wait for the next prompt,
    each as it is: in lines, Ctrl-D would be lost."""
    if sys.platform == "win32":  # a console repeats only what is being read
        yield
        return
    import termios

    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):  # not a terminal, or closed
        yield
        return
    quiet = [*before]
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
