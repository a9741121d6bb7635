"""What a command owes its process: standard streams that are there, one line for whatever goes
wrong, the exit code 130 for Ctrl-C at any moment."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from ggext.errors import GgextError
from ggext.screen.flags import in_flags

STOPPED = 130  # the exit code of what Ctrl-C ended
#: What writing to a standard stream fails with: a full disk, a closed end, a quota.
_OUTPUT = {errno.ENOSPC, errno.EBADF, errno.EIO, errno.EDQUOT, errno.EFBIG}
_DEBUG = "ggext.debug"


def debug(context: click.Context, _: click.Parameter, chosen: bool) -> None:
    """A click callback: an error that is ggext's own shows its traceback."""
    if chosen:
        context.find_root().meta[_DEBUG] = True


def is_debugged() -> bool:
    """Whether the running command got `--debug`."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().meta.get(_DEBUG))


def run(command: Callable[[], Any]) -> NoReturn:
    """Runs a click command that is not standalone, and ends the process as it should end."""
    code: Any = 1
    try:
        quits = signal.getsignal(signal.SIGINT) is leave_at_once
        if quits:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # Registered first, it runs last. After it Python would put the system's own handler
            # back, and Ctrl-C would take the exit code from a command that has said all.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        _open_streams()
        try:
            code = command()
        finally:
            # What is left is the interpreter's end, which shows a traceback of its own.
            if quits:
                signal.signal(signal.SIGINT, leave_at_once)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        code = STOPPED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:  # of the group's own arguments
        code = print_error(f"{error.format_message().rstrip('.')}; see ggext --help", 2)
    except OSError as error:
        code = print_error(_of_output(error), 1)
    _leave_streams()
    status = code if isinstance(code, int) else 0
    sys.exit(status)


def failed(error: BaseException) -> NoReturn:
    """One line for what a command raised; the rest is in a file, and with --debug on the screen.
    Raises what ends a command."""
    if isinstance(error, GgextError):
        sys.exit(print_error(str(error), error.exit_code))
    if isinstance(error, KeyboardInterrupt | click.Abort):
        sys.exit(STOPPED)
    if isinstance(error, MemoryError):
        sys.exit(print_error("out of memory; choose a smaller model or context", 1))
    if isinstance(
        error, BrokenPipeError
    ):  # whoever read our output has gone: nothing to say
        sys.exit(1)
    if isinstance(error, OSError) and error.errno in _OUTPUT and error.filename is None:
        sys.exit(print_error(_of_output(error), 1))
    from ggext.chat.report import in_one_line

    if is_debugged():
        traceback.print_exception(error)
    sys.exit(print_error(in_one_line(error), 1))


def leave_at_once(*_: object) -> NoReturn:
    """A signal handler for the time before a command runs and after it, when nothing is open."""
    os._exit(STOPPED)


@contextmanager
def interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """A block in which Ctrl-C calls ``stop``, once; a second one ends the program."""

    def handle(_: int, __: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def note(line: str, *, end: bool = True) -> None:
    """A line on the standard error; nothing where that cannot be written, on a full disk: what a
    command finds does not depend on who watches. ``end``: whether the line ends."""
    with suppress(OSError):
        click.echo(line, err=True, nl=end)


def print_error(message: str, code: int) -> int:
    """Says it in one line on the standard error; the exit code."""
    note(f"ggext: {in_flags(' '.join(message.split()))}")
    return code


def _of_output(error: OSError) -> str:
    return f"the output cannot be written: {error.strerror or error}"


def _open_streams() -> None:
    """Streams that the caller closed are /dev/null: else the next file that is opened gets their
    number, and what someone prints."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(
                os.devnull, os.O_RDWR
            )  # the lowest that is free: this one's
            setattr(sys, name, os.fdopen(number, mode))


def _leave_streams() -> None:
    """Python writes what is buffered when it ends, and would complain where that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            except (OSError, ValueError):
                continue
