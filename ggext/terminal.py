"""The terminal: everything that draws, and what Ctrl-C means.

The only module that imports rich and prompt_toolkit.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TYPE_CHECKING, Any

from ggext.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ggext.chat.loop import Screen

# All but line feed and tab: a model's text must not drive the terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONG_PROMPT = 2048  # tokens; shown at once, others when they turn out to take long
_LONG_WAIT = 0.7  # seconds
_REPEAT = 0.02  # seconds


def open_screen() -> Screen:
    """A full screen on a terminal; plain lines where input or output is something else."""
    full = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return TerminalScreen() if full else PlainScreen()


class PlainScreen:
    """The answer alone on the standard output, all else on the standard error."""

    def __init__(self) -> None:
        self._console = _console(sys.stderr)
        self._bar = PrefillBar(self._console)
        self._column = 0

    def read(self) -> str | None:
        """The next line, None at the end of the input."""
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None

    def notice(self, text: str) -> None:
        """A sentence for the user."""
        self._print(text, "dim")

    def error(self, text: str) -> None:
        """What went wrong."""
        self._print(text, "red")

    def status(self, text: str) -> None:
        """The line after a turn."""
        self._print(text, "dim")

    def progress(self, done: int, total: int) -> None:
        """A bar for a prompt that takes long."""
        self._bar.update(done, total)

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
        self._console.print(shown(text), style=style, soft_wrap=True)


class TerminalScreen(PlainScreen):
    """A terminal with line editing, history and pasted blocks; Alt-Enter begins a new line."""

    def __init__(self) -> None:
        super().__init__()
        self._console = _console(sys.stdout)
        self._bar = PrefillBar(self._console)
        self._session = _prompt_session()

    def read(self) -> str | None:
        """The next input, None for Ctrl-D. Ctrl-C drops what was typed, else KeyboardInterrupt."""
        try:
            return str(self._session.prompt("> "))
        except EOFError:
            return None
        except KeyboardInterrupt:
            if self._session.default_buffer.text:
                return ""
            raise

    def interrupts(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """A block in which Ctrl-C calls `cancel`; the terminal then stands behind its own ^C."""

        def cancel_line() -> None:
            self._column = 2
            cancel()

        return on_interrupt(cancel_line)


class PrefillBar:
    """A bar with the time that is left, drawn only for a prompt that takes long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._start = 0.0

    def update(self, done: int, total: int) -> None:
        """`done` of `total` tokens are evaluated; 0 starts the clock."""
        if done == 0:
            self._start = time.perf_counter()
        left = (time.perf_counter() - self._start) / done * (total - done) if done else None
        if self._bar is None and self._is_long(left, total):
            self._bar = _new_bar(self._console, total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, left=_clock(left))
            self._bar.refresh()

    def stop(self) -> bool:
        """Takes the bar off the screen; whether there was one."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
        return bar is not None

    def _is_long(self, left: float | None, total: int) -> bool:
        long = total >= _LONG_PROMPT if left is None else left > _LONG_WAIT
        return long and self._console.is_terminal


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


@contextmanager
def on_interrupt(cancel: Callable[[], None]) -> Iterator[None]:
    """A block in which Ctrl-C calls `cancel`, and raises nothing.

    Python runs signal handlers only between its own instructions, so not while llama.cpp computes.
    Therefore a second thread waits for the byte that Python's C handler writes at once, and calls
    `cancel` until the block ends: what starts a moment later is stopped too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(receiver, cancel), daemon=True)
    previous = signal.signal(signal.SIGINT, lambda *_: None)
    previous_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        signal.signal(signal.SIGINT, previous)
        sender.close()
        watcher.join()
        receiver.close()


def _watch(receiver: socket.socket, cancel: Callable[[], None]) -> None:
    interrupted = False
    while True:
        try:
            numbers = receiver.recv(64)
        except TimeoutError:
            cancel()
            continue
        if not numbers:
            return
        if signal.SIGINT in numbers and not interrupted:
            interrupted = True
            cancel()
            receiver.settimeout(_REPEAT)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} left"


def _console(file: IO[str]) -> Console:
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, emoji=False)


def _new_bar(console: Console, total: int) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens {task.fields[left]}"),
        console=console,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task("reading", total=total, left="")
    bar.start()
    return bar


def _prompt_session() -> Any:
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    except ModuleNotFoundError as error:
        raise MissingExtraError("prompt_toolkit", "run", "ggext chat on a terminal") from error
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(history=InMemoryHistory(), key_bindings=keys)
    return session
