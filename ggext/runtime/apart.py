"""Calls of llama.cpp that call back into Python, made in another thread than the main one.

Python runs signal handlers in the main thread alone, between two of its own instructions. While the
main thread is inside llama.cpp the next instructions are a callback's, and what a handler raises on
the callback's border is dropped by ctypes: Ctrl-C would be lost, and the callback would have said
nothing, which llama.cpp takes for a no. So the main thread waits here, where it can be interrupted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

from ggext.runtime import forks, llama

T = TypeVar("T")

_POLL = 0.05  # seconds between two calls of ``meanwhile``


class _Call:
    """A call that is made by the helper, and what became of it."""

    def __init__(self, function: Callable[[], object], log: llama.Log) -> None:
        self._function = function
        self._log = log
        self.done = threading.Event()
        self.result: object = None
        self.error: BaseException | None = None

    def make(self) -> None:
        try:
            with llama.listening(self._log):
                self.result = self._function()
        except BaseException as error:  # noqa: BLE001 - `run` raises it, in the thread that called
            self.error = error
        finally:
            self.done.set()


class _Helper:
    """The thread that makes them, one after the other; kept, because OpenMP makes a team of threads
    for each thread that computes."""

    def __init__(self) -> None:
        self.process = forks.count
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        threading.Thread(
            target=self._make_all, daemon=True, name="ggext-llama.cpp"
        ).start()

    def _make_all(self) -> None:
        while True:
            self.calls.get().make()


_helper: _Helper | None = None


def run(
    function: Callable[[], T],
    *,
    stop: Callable[[], object],
    free: Callable[[T], object] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> T:
    """The result of ``function``, which calls llama.cpp and is not called in the main thread; in
    another thread it is called at once.

    ``meanwhile`` is called in the thread that waits: at the beginning, now and then, at the end.
    Where it raises, or a signal handler does, ``stop`` is called, which makes the function return
    soon; then its result is freed, and the error goes on.
    """
    global _helper
    if meanwhile is None and threading.current_thread() is not threading.main_thread():
        return function()
    call = _Call(function, llama.current_log())
    if threading.current_thread() is not threading.main_thread():
        threading.Thread(target=call.make, daemon=True).start()
    else:
        if _helper is None or _helper.process != forks.count:
            _helper = _Helper()
        _helper.calls.put(call)
    try:
        if meanwhile is not None:
            meanwhile()
        while not call.done.wait(_POLL):
            if meanwhile is not None:
                meanwhile()
        if meanwhile is not None and call.error is None:
            meanwhile()
    except BaseException:
        stop()
        while not call.done.is_set():
            with suppress(
                KeyboardInterrupt
            ):  # a second one: nothing may be freed before
                call.done.wait()
        if free is not None and call.error is None:
            free(call.result)  # type: ignore[arg-type]
        raise
    if call.error is not None:
        raise call.error
    return call.result  # type: ignore[return-value]
