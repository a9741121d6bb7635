"""What the extension logs, by thread."""

from __future__ import annotations

import ctypes
import threading

from ggext import _native

# llama.cpp's log -----------------------------------------------------------------------------------

add_to_log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
    _native.log_callback()
)


def test_a_thread_gets_what_was_logged_in_it() -> None:
    _native.take_log()
    texts: list[bytes] = []

    def other() -> None:
        add_to_log(4, b"theirs", None)
        texts.append(_native.take_log())

    add_to_log(2, b"one\n", None)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    add_to_log(5, b"", None)
    add_to_log(1, b"of a debugger", None)
    add_to_log(4, None, None)
    add_to_log(-1, b"of no level", None)
    assert texts == [b"4theirs\0"]
    assert _native.take_log() == b"2one\n\x005\x00"
    assert _native.take_log() == b""


def test_a_log_is_bounded() -> None:
    """What a stranger's file makes llama.cpp log, and no one reads."""
    for number in range(5000):
        add_to_log(3, b"%d" % number + b"x" * 500, None)
    add_to_log(3, b"y" * (1 << 20), None)
    taken = _native.take_log()
    assert 0 < len(taken) <= 1 << 18
    assert taken.endswith(b"34999" + b"x" * 500 + b"\0")
