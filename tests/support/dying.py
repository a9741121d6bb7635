"""Functions that `ggext.runtime.child` calls in a child: some return, some die."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ggext.errors import ContextFullError, UsageError
from ggext.runtime.channel import Channel


def doubled(values: list[int]) -> list[int]:
    sys.stdout.write("printing does not disturb the conversation")
    os.write(1, b"nor does C")
    return [2 * value for value in values]


def refused(text: str) -> None:
    raise UsageError(text)


def full() -> None:
    raise ContextFullError(5, 3, 1)


def broken() -> None:
    raise ZeroDivisionError("one by none")


def killed(name: str) -> None:
    if name == "SIGABRT":
        os.write(2, b"tensor.c:12: GGML_ASSERT(a->ne[0] > 0) failed\n")
    os.kill(os.getpid(), signal.Signals[name])
    time.sleep(30)


def exits(status: int) -> None:
    os.write(2, b"out of luck\n")
    os._exit(status)


def sleeps() -> None:
    time.sleep(600)


def interrupts_its_group() -> str:
    """What Ctrl-C in a terminal does to a child that shares its parent's group."""
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def echoes(channel: Channel) -> None:
    while (message := channel.receive()) is not None:
        channel.send(message)


def talks_nonsense(channel: Channel) -> None:
    channel.write(b"\xff\xff\xff\xff no frame")
    channel.receive()


def environment(names: list[str]) -> dict[str, Any]:
    return {name: os.environ.get(name) for name in names}


def holds(channel: Channel) -> None:
    channel.receive()


def gives_up_in_ggml() -> None:
    """As ggml's own assertions do."""
    import ctypes

    from ggext.runtime import llama

    abort = llama.lib()._lib.ggml_abort
    abort.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p]
    abort(b"ops.cpp", 7, b"GGML_ASSERT(%s) failed", b"n_dims <= ne0")


def loads_without_precheck(channel: Channel) -> None:
    """The trial of a file whose fault no table knows."""
    from ggext.runtime import first_load_child, precheck

    precheck.refuse_what_aborts = lambda _: None
    first_load_child.serve(channel)


def aborts_at_some_files(path: Path, _quantization: object) -> None:
    """What the model fuzzer tries: a third of the files ends the process."""
    if path.stat().st_size % 3 == 0:
        os.kill(os.getpid(), signal.SIGABRT)
