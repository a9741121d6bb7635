"""Renders a stranger's chat templates in a child process, which is kept warm.

No check inside a process can bound what a template does in one operation: Python compares, hashes
and prints nested lists without looking up, and a compiler folds constants. So the template is
compiled and rendered in a fresh interpreter with limits of memory and CPU time
(`ggext.chat.render_child`), and a clock here ends it.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from multiprocessing import spawn
from typing import IO, Any

from ggext.chat.render_child import read_frame, unpacked_reply, write_frame
from ggext.runtime.child import may_start_itself, run_if_child

# A frozen program is its own interpreter: this word makes it serve (`freeze_support`).
CHILD_ARGUMENT = "--ggext-template-child"
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from ggext.chat.render_child import serve; serve()"
)
_START_SECONDS = 30.0
_PIPE_BYTES = 1 << 20  # what Linux gives to anyone
_CPU_TIME_OVER = -27  # SIGPROF, on every system that has it
#: Seconds of the clock for each second of CPU time: the child limits the latter by itself, and a
#: busy machine gives less of it than a second each. Windows has no such limit.
PATIENCE = 1.0 if sys.platform == "win32" else 2.3
_BYTES_A_CHARACTER = 4


class ChildEnded(Exception):  # noqa: N818 - not an error by itself
    """The child ended before it answered; ``late``: because its time was over; ``unstarted``: why
    there was none."""

    def __init__(self, late: bool, unstarted: str = "") -> None:
        reason = "late" if late else unstarted or "ended"
        super().__init__(reason)
        self.late = late
        self.unstarted = unstarted


class Renderer:
    """One child and the requests to it, one at a time, from any thread.

    It is started by the first request, again after it has ended, and by itself in a forked process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._owner = 0
        self._ready = False

    def start(self) -> None:
        """Starts the child where there is none, without waiting for it."""
        with self._lock:
            self._running()

    def compile(self, source: str, seconds: float) -> dict[str, Any]:
        """The child's reply to a template's source, after at most ``seconds`` of CPU time and
        PATIENCE times as many of the clock. Raises ChildEnded."""
        return self._ask(
            source, {"source": source, "most": 1 << 20}, seconds, len(source)
        )

    def render(
        self, source: str, values: dict[str, Any], most: int, seconds: float
    ) -> dict[str, Any]:
        """The child's reply to a render with at most ``most`` characters, in as much time as
        `compile` may take. Raises ChildEnded."""
        request = {"values": values, "most": most}
        reply = self._ask(source, request, seconds, most)
        if "unknown" in reply:  # another child than the one that compiled it
            reply = self._ask(source, request | {"source": source}, seconds, most)
        return reply

    def stop(self) -> None:
        """Ends the child, if there is one."""
        with self._lock:
            self._stop()

    def _ask(
        self, source: str, request: dict[str, Any], seconds: float, characters: int
    ) -> dict[str, Any]:
        key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        request = request | {"key": key, "seconds": seconds, "characters": characters}
        most = _BYTES_A_CHARACTER * characters + (1 << 16)
        with self._lock:
            process = self._running()
            try:
                if not self._ready:
                    _await_ready(process)
                    self._ready = True
                reply = _exchanged(process, request, seconds, most)
                if reply.pop("last", False):
                    self._stop()
                return reply
            except (
                BaseException
            ):  # also Ctrl-C: what comes then is the answer to nothing
                self._stop()
                raise

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if (
            process is not None and self._owner != os.getpid()
        ):  # another process's, before a fork
            self._end.detach()
            _let_go(process)
            self._process = process = None
        if process is not None and process.poll() is not None:
            self._stop()
            process = None
        if process is None:
            process = self._process = _started()
            self._owner = os.getpid()
            self._ready = False
            self._end = weakref.finalize(self, _end, process, self._owner)
        return process

    def _stop(self) -> None:
        if self._process is not None:
            self._end()
            self._process = None


def _started() -> subprocess.Popen[bytes]:
    frozen = getattr(sys, "frozen", False)
    if frozen and not may_start_itself():
        why = "a frozen program calls ggext.freeze_support() first"
        raise ChildEnded(late=False, unstarted=why)
    executable = sys.executable if frozen else os.fsdecode(spawn.get_executable() or "")
    # A group of its own: Ctrl-C and Ctrl-Z of a terminal are the host's.
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    try:
        command = (
            [executable, CHILD_ARGUMENT] if frozen else [executable, "-I", "-c", _BOOT]
        )
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=flags,
            start_new_session=True,  # without effect on Windows
        )
    except OSError as error:
        raise ChildEnded(
            late=False, unstarted=f"{executable}: {error.strerror}"
        ) from error
    for pipe in _pipes(process):
        _widen(pipe)
    if not frozen:
        folders = [folder or os.getcwd() for folder in sys.path]
        with suppress(OSError):
            _pipes(process)[0].write(json.dumps(folders).encode("ascii") + b"\n")
            _pipes(process)[0].flush()
    return process


def _widen(pipe: IO[bytes]) -> None:
    """Makes a pipe hold a book, where the system can: else both processes wake for every 64 KiB."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    try:
        _exchanged(process, None, _START_SECONDS, 1 << 10)
    except ChildEnded as end:
        why = f"{sys.executable} ended before it was ready, or took {_START_SECONDS:g} seconds"
        raise ChildEnded(late=False, unstarted=why) from end


def _exchanged(
    process: subprocess.Popen[bytes],
    request: dict[str, Any] | None,
    seconds: float,
    most: int,
) -> dict[str, Any]:
    """Sends a request (None: waits for the child to be ready) and returns the reply.

    A reply has at most ``most`` bytes. Raises ChildEnded.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    requests, replies = _pipes(process)
    clock = threading.Timer(seconds * PATIENCE, end)
    clock.daemon = True
    clock.start()
    try:
        if request is not None:
            write_frame(requests, marshal.dumps(request))
        reply = unpacked_reply(read_frame(replies, most))
    except OSError:  # a broken pipe
        reply = None
    finally:
        clock.cancel()
    if reply is None:
        process.kill()
        code = process.wait()
        raise ChildEnded(late.is_set() or code == _CPU_TIME_OVER)
    return reply


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """Ends the process and waits for it: no zombie stays."""
    if os.getpid() != owner:
        _let_go(process)
        return
    process.kill()
    process.wait()
    for pipe in _pipes(process):
        with suppress(OSError):  # what was not written any more
            pipe.close()


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Closes this process's ends of another's child."""
    for pipe in _pipes(process):
        with suppress(OSError):
            os.close(pipe.fileno())
            pipe.detach()  # type: ignore[attr-defined]
    process.returncode = 0  # nothing to wait for


def freeze_support() -> None:
    """Does a child's work and ends, where a frozen program was started as one; else returns.

    A program that is frozen (PyInstaller and its like) calls it first, as it calls
    `multiprocessing.freeze_support`: it is its own child for chat templates and for llama.cpp.
    """
    if sys.argv[1:2] == [CHILD_ARGUMENT]:
        from ggext.chat.render_child import serve

        serve()
        raise SystemExit(0)
    run_if_child()


#: The one child of this process.
renderer = Renderer()
