"""The only door to llama.cpp.

The package is imported here and nowhere else, at the first use. One version is accepted, because
ctypes lays out llama.cpp's structs by hand: another version would read other bytes. Whatever
llama.cpp logs is collected instead of printed, so that an error can quote the line that says why:
by C code, because a callback in Python is where Ctrl-C would be lost.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext import _native
from ggext.errors import MissingExtraError, ModelError
from ggext.llama_cpp_facts.pin import LLAMA_CPP_PYTHON
from ggext.runtime import kernels

if TYPE_CHECKING:
    from ggext.gguf.reader import GgufFile

VERSION = LLAMA_CPP_PYTHON

_LOG_ERROR = 4
_LOG_CONTINUED = 5
# Lines that only say that something failed, after the line that says why.
_EMPTY_PHRASES = (
    "failed to load model",
    "failed to quantize:",
    "failed to decode, ret",
)

# How much of a model's weights lies where; what is mapped is the file's own memory.
_WEIGHTS = re.compile(r"load_tensors: +(\S+) model buffer size = +([\d.]+) MiB")

# Whether keys and values are turned by a Hadamard matrix before they are quantized, of each cache.
_ROTATED = re.compile(r"attn_rot_([kv]) = ([01])")

_RULER = re.compile("={4,}")  # llama.cpp frames some errors

_lock = threading.Lock()
_module: Any = None


class Log:
    """The last ``lines`` that llama.cpp logged for one thread, as (level, text)."""

    def __init__(self, most: int | None = 400) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=most)

    def clear(self) -> None:
        """Forgets them."""
        self.lines.clear()

    def add(self, level: int, line: str) -> None:
        """A line, or more of the last one."""
        if level == _LOG_CONTINUED and self.lines:
            level, start = self.lines.pop()
            line = start + line
        self.lines.append((level, line))

    def copied_weights(self) -> int:
        """Bytes of the weights whose loading was logged that have memory of their own: those on
        devices, and those that llama.cpp laid out again for its CPU kernels."""
        sizes = (
            match.groups() for _, text in self.lines if (match := _WEIGHTS.search(text))
        )
        return int(
            sum(
                float(size) * 2**20
                for name, size in sizes
                if not name.endswith("_Mapped")
            )
        )

    def rotated(self) -> tuple[str, ...]:
        """What the caches whose making was logged turn by a Hadamard matrix before they quantize
        it: of "keys" and "values" those, where any cache does."""
        names = {"k": "keys", "v": "values"}
        pairs = (pair for _, text in self.lines for pair in _ROTATED.findall(text))
        turned = {kind for kind, flag in pairs if flag == "1"}
        return tuple(name for kind, name in names.items() if kind in turned)

    def errors(self) -> list[str]:
        return [text.strip() for level, text in self.lines if level == _LOG_ERROR]


class _Logs(threading.local):
    """Whose call llama.cpp speaks of: it logs in the thread that called it. ``stack``: one log for
    each call that others are made within, as a load's progress may open another model."""

    def __init__(self) -> None:
        self.stack = [Log()]


_logs = _Logs()


def current_log() -> Log:
    """This thread's log, with what llama.cpp has logged in it since."""
    log = _logs.stack[-1]
    if texts := _native.take_log():
        for text in texts.split(b"\0")[:-1]:
            log.add(text[0] - ord("0"), text[1:].decode("utf-8", "replace"))
    return log


def lib(purpose: str = "running a model") -> Any:
    """The module llama_cpp, imported silently, its version checked, its backend started once.

    Raises MissingExtraError without llama-cpp-python, ModelError for another version.
    """
    global _module
    with _lock:
        if _module is None:
            _module = _start(purpose)
        return _module


def _start(purpose: str) -> Any:
    kernels.check()  # before the library is in this process, which it may end
    try:
        with _patient_threads():
            import llama_cpp
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "llama_cpp":
            raise MissingExtraError("llama-cpp-python", "run", purpose) from error
        raise ModelError(f"llama-cpp-python needs the package {error.name}") from error
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"llama-cpp-python does not load its library: {error}"
        ) from error
    if llama_cpp.__version__ != VERSION:
        raise ModelError(
            f"llama-cpp-python {llama_cpp.__version__} is installed, but ggext is written for "
            f'{VERSION}: pip install "llama-cpp-python=={VERSION}"'
        )
    module: Any = llama_cpp.llama_cpp
    module.llama_log_set(module.llama_log_callback(_native.log_callback()), None)
    module.llama_backend_init()
    return module


@contextmanager
def _patient_threads() -> Iterator[None]:
    """While libgomp is loaded: its threads should wait 1000 rounds (some 50 µs) before they sleep.

    By itself it waits for milliseconds, after each of the hundreds of operations of a token. When
    another program has one of the cores, that is all it does: measured with 85 million parameters
    on 2 threads, 0.8 tokens a second instead of 55. What the user chose is left alone.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "1000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


@contextmanager
def listening(log: Log | None = None) -> Iterator[Log]:
    """What llama.cpp logs in this thread while the block runs, but for inner such blocks."""
    current_log()
    log = log or Log()
    _logs.stack.append(log)
    try:
        yield log
    finally:
        current_log()
        _logs.stack.remove(log)


def clear_log() -> None:
    """Forgets what was logged in this thread, so that `failure` speaks of the call that follows."""
    current_log().clear()


def reason() -> str:
    """The first error that llama.cpp logged in this thread since `clear_log`: the cause precedes
    its consequences."""
    errors = current_log().errors()
    telling = [
        text for text in errors if not any(word in text for word in _EMPTY_PHRASES)
    ]
    line = (telling or errors or ["it gave no reason"])[0]
    line = " ".join(_RULER.sub(" ", line).split())
    function, colon, rest = line.partition(": ")
    return rest if colon and " " not in function else line


def failure(message: str) -> ModelError:
    """A ModelError: `message`, then llama.cpp's own reason."""
    return ModelError(f"{message}: llama.cpp says: {reason()}")


def abort_flag() -> tuple[ctypes.Array[ctypes.c_char], Any]:
    """A two-byte flag and the abort callback that reads it: set byte 0 to 1 to stop a computation.

    The callback is libc's strlen: of b"\\0" it returns 0 (go on), of b"\\1\\0" it returns 1 (stop).
    llama.cpp asks before every node of the graph, and a callback into Python needs the
    interpreter's lock each time: measured on a 5-layer model, 4400 tokens a second fall to 4000,
    and to 750 while another Python thread is busy.
    """
    flag = ctypes.create_string_buffer(2)
    libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    address = ctypes.cast(libc.strlen, ctypes.c_void_p).value
    return flag, lib().ggml_abort_callback(address)


def quantization_names() -> tuple[str, ...]:
    """The quantizations that llama.cpp can write: Q4_K_M, Q6_K, ..."""
    return tuple(quantizations())


def quantizations() -> dict[str, int]:
    """llama.cpp's number of each, by name."""
    prefix = "LLAMA_FTYPE_MOSTLY_"
    module = lib("naming llama.cpp's quantizations")
    names = (name for name in dir(module) if name.startswith(prefix))
    types = {name.removeprefix(prefix): int(getattr(module, name)) for name in names}
    types["F32"] = int(module.LLAMA_FTYPE_ALL_F32)
    return dict(sorted(types.items(), key=lambda item: item[1]))


def check_gguf(path: Path) -> GgufFile:
    """The header, checked before llama.cpp sees the file: it aborts on some malformed ones.

    Raises GgufError.
    """
    from ggext.gguf.open import read_gguf
    from ggext.gguf.shards import model_parts, whole_header
    from ggext.runtime.precheck import refuse_unknown_experts, refuse_what_aborts

    header = read_gguf(path)
    refuse_what_aborts(whole_header(header))
    for part in model_parts(header):
        refuse_unknown_experts(part, header.arch_keys().get("expert_count", 0))
    return header
