"""Another process for what may end its process: started, spoken to, its death named in a sentence.

For one function that may die, `call` is all there is:

    result = child.call("ggext.runtime.kernels:probe", str(library), timeout=60)

runs ``probe`` of the module in a process of its own. Arguments and result are what JSON can say. A
GgextError of the function is raised here as it was there, and a death (signal, abort, out of
memory) is an `EngineDiedError` whose message names it. `Child` is the same with a conversation.

The child is a fresh interpreter, never a fork: a fork of a process with threads may find any lock
taken for ever. It speaks JSON in frames (u32 length, then the text) over its standard input and
output, and nothing that it sends is unpickled: whoever has taken over a child by a model file has
not taken over its parent. It ends when its parent does. What it prints goes to no terminal; the
last of it is quoted when it dies.

A frozen program (PyInstaller and its like) has no interpreter to start. It starts itself again,
and its first statement must be `run_if_child()`, which does not return in a child.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn

from ggext.errors import EngineDiedError, ModelError, UsageError
from ggext.runtime.channel import Channel, error_as_json, frame, result_of
from ggext.runtime.closing import Closing

_MARK = "--ggext-child"
_TAIL = 4096  # bytes of what a child printed
_QUOTED = 300  # characters of it in a message
_PATIENCE = 5.0  # seconds that a child has to end by itself
_PR_SET_PDEATHSIG = 1

# What runs in the child before anything of ggext is there: the parent's modules, from its folders.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ggext.runtime.child import main; main(*sys.argv[2:])"
)

_SIGNALS = {
    "SIGKILL": "it was killed, as the system does where memory runs out",
    "SIGILL": "an instruction that this processor does not have",
    "SIGSEGV": "a segmentation fault",
    "SIGBUS": "a file was cut short while it was read, or the disk failed",
    "SIGABRT": "it gave up",
    "SIGFPE": "an impossible division",
}
_WINDOWS_ENDS = {
    0xC0000005: "a segmentation fault",
    0xC000001D: "an instruction that this processor does not have",
    0xC0000017: "memory ran out",
    0xC00000FD: "the stack overflowed",
    0xC0000094: "an impossible division",
    0xC0000409: "it gave up",
}

_prepared = False
_inside = False


def is_unwanted() -> bool:
    """Whether the user wants no child where one is only a precaution."""
    return os.environ.get("GGEXT_FIRST_LOAD") == "here"


def may_start_itself() -> bool:
    """Whether a frozen program knows a child when it is started as one; else it would do all its
    work again, children and all."""
    return _prepared


def is_child() -> bool:
    """Whether this process is a `Child` of another."""
    return _inside


def run_if_child() -> None:
    """The first statement of a frozen program's main. In a child it does the child's work and ends
    the process; else it returns at once."""
    global _prepared
    _prepared = True
    if sys.argv[1:2] == [_MARK]:
        main(*sys.argv[2:])


def call(function: str, *arguments: Any, timeout: float | None = None) -> Any:
    """``function``, as ``package.module:name``, called in a child; what it returned.

    ``timeout``: seconds after which the child is killed. Raises what the function raised where it
    is a GgextError, EngineDiedError where the child died, ModelError where time ran out.
    """
    with (
        Child("ggext.runtime.child:answer") as child,
        child.limited(timeout) as expired,
    ):
        child.send({"function": function, "arguments": arguments})
        reply = child.receive()
        if reply is not None:
            return result_of(reply)
        if expired.is_set():
            raise ModelError(f"{function} did not end within {timeout:g} seconds")
        raise child.died()


class Child(Closing):
    """A process that runs ``target``, a function as ``package.module:name`` that gets a `Channel`.

    The thread that makes it must live as long as it: Linux kills the child with that thread.
    Messages are anything that JSON can say; any thread may send. ``environment``: what the child's
    differs in. Raises ModelError where no process can be started, UsageError in a frozen program
    that does not call `run_if_child`.
    """

    def __init__(
        self, target: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child
        # Its own group: Ctrl-C in a terminal is the parent's.
        apart: dict[str, Any] = {"process_group": 0}
        if sys.platform == "win32":
            apart = {
                "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP
                | subprocess.CREATE_NO_WINDOW
            }
        try:
            self._process = subprocess.Popen(
                [*_command(), target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                bufsize=0,
                env=os.environ | {"GGML_NO_BACKTRACE": "1"} | dict(environment or {}),
                **apart,
            )
        except OSError as error:
            self._printed.close()
            raise ModelError(
                f"no process can be started for llama.cpp: {error.strerror}"
            ) from error
        except BaseException:
            self._printed.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout, self._process.stdin)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # Not the sender's own thread: an interrupt in the middle of a frame would tear it, and a
        # full pipe would hold up an event loop.
        threading.Thread(
            target=_write_all,
            args=(self._channel, self._outgoing),
            name="ggext child",
            daemon=True,
        ).start()
        _children.add(self)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Hands a message over. To a child that is dead it goes unread."""
        self._outgoing.put(frame(message))

    def receive(self) -> Any | None:
        """The child's next message; None after the last one. From one thread only."""
        try:
            return self._channel.receive()
        except (OSError, ValueError):  # closed meanwhile, or what it sent is no frame
            return None

    def kill(self) -> None:
        """Ends it at once."""
        with suppress(OSError):
            self._process.kill()

    @contextmanager
    def limited(self, seconds: float | None) -> Iterator[threading.Event]:
        """A block after whose ``seconds`` (None: any number) the child is killed; the event says
        that it was."""
        expired = threading.Event()
        if seconds is None:
            yield expired
            return

        def expire() -> None:
            expired.set()
            self.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True  # else the program waits for it, after a Ctrl-C
        timer.start()
        try:
            yield expired
        finally:  # also of an interrupt: the interpreter's end waits for the timer
            timer.cancel()

    def died(self) -> EngineDiedError:
        """Waits for the end of a child that sends no more; the error that names it."""
        status = self._wait()
        name = _signal_name(status)
        return EngineDiedError(
            f"{_how(status, name)}{self._last_words()}", name, status
        )

    def close(self) -> None:
        """Asks it to end, and ends it if it does not. Further calls do nothing."""
        self._outgoing.put(None)
        with suppress(OSError):
            self._wait()
        self._channel.close()
        self._printed.close()

    def _wait(self) -> int:
        try:
            return self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def _last_words(self) -> str:
        try:
            end = self._printed.seek(0, os.SEEK_END)
            self._printed.seek(max(0, end - _TAIL))
            lines = self._printed.read().decode("utf-8", "replace").split("\n")
        except (OSError, ValueError):
            return ""
        words = [" ".join(line.split()) for line in lines if line.strip()]
        # llama.cpp says why before it aborts, and C++ what was thrown.
        telling = [line for line in words if "GGML_ASSERT" in line or "what():" in line]
        return f": {(telling or words)[-1]:.{_QUOTED}}" if words else ""

    def _forget(self) -> None:
        """In a process that was forked off: the child is another's, and its pipes must not stay
        open here, or it would not see its parent's end."""
        self._channel.close()
        self._process.returncode = 0


_children: weakref.WeakSet[Child] = weakref.WeakSet()


def _forget_children() -> None:
    for child in list(_children):
        child._forget()
    _children.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_children)


def _write_all(channel: Channel, outgoing: queue.SimpleQueue[bytes | None]) -> None:
    """A thread: sends what waits, until None, which ends the child's input."""
    while (data := outgoing.get()) is not None:
        try:
            channel.write(data)
        except (
            OSError,
            ValueError,
        ):  # the child is dead: its end is seen where it is read
            return
    channel.end()


def _command() -> list[str]:
    if getattr(sys, "frozen", False):
        if not _prepared:
            raise UsageError(
                "a frozen program starts itself again for llama.cpp: call "
                "ggext.freeze_support() as the first statement of its main"
            )
        return [sys.executable, _MARK]
    from multiprocessing import spawn  # an embedding program may have set_executable

    executable = spawn.get_executable()
    if not executable:
        raise ModelError(
            "there is no Python interpreter to start for llama.cpp: name one with "
            "multiprocessing.set_executable"
        )
    # -P: nothing is imported from the folder that the program happens to be in.
    flags = ["-I"] if sys.flags.isolated else ["-P"]
    if sys.flags.ignore_environment:
        flags.append("-E")
    return [os.fsdecode(executable), *flags, "-c", _START, json.dumps(sys.path)]


def _signal_name(status: int) -> str | None:
    if status >= 0:
        return None
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _how(status: int, name: str | None) -> str:
    whose = "the process of llama.cpp"
    if name is not None:
        reason = _SIGNALS.get(name)
        return f"{whose} died of {name}" + (f" ({reason})" if reason else "")
    if (status & 0xFFFFFFFF) in _WINDOWS_ENDS:
        return f"{whose} died: {_WINDOWS_ENDS[status & 0xFFFFFFFF]}"
    return f"{whose} ended with status {status}"


def main(target: str) -> NoReturn:
    """The child's main: takes the standard streams for its channel and runs the target."""
    global _inside
    _inside = True
    channel = _take_standard_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    module, _, name = target.partition(":")
    getattr(import_module(module), name)(channel)
    sys.stderr.flush()
    os._exit(0)  # no thread inside llama.cpp is waited for


def _take_standard_streams() -> Channel:
    """The pipes to the parent, out of reach of whatever prints."""
    incoming = os.dup(0)
    outgoing = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they live as long as the process
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    return Channel(io.FileIO(incoming, "rb"), io.FileIO(outgoing, "wb"))


def _die_with_parent() -> None:
    """Linux kills this process with the thread that started it. Elsewhere, and where that had ended
    already, the end of the channel does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_at_end(channel: Channel) -> None:
    """Starts a thread that ends this process when the parent does; nothing else may receive."""

    def wait() -> None:
        with suppress(OSError, ValueError):
            while channel.receive() is not None:
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def answer(channel: Channel) -> None:
    """The child of `call`: one function, one reply."""
    request = channel.receive()
    if request is None:
        return
    exit_at_end(channel)
    module, _, name = request["function"].partition(":")
    try:
        reply = {"result": getattr(import_module(module), name)(*request["arguments"])}
    except Exception as error:  # noqa: BLE001 - raised in the parent
        reply = {"error": error_as_json(error)}
    channel.send(reply)
