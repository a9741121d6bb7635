"""Ctrl-C while llama.cpp computes."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_REPEAT = 0.02  # seconds


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
