"""Whether this processor can execute the matrix kernels of the installed llama.cpp.

Kernels that were compiled for another processor, or compiled wrongly, end the process at their
first product: ggml's AMX kernels do after GCC before 13.3 (llama.cpp pull request 26954). So a
child process (`kernel_trial`) multiplies small matrices with each kernel of the library that will
be used, before this process loads it. What it finds is kept in the user's cache for this library
and this processor; the second time costs the reading of a small file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ggext.errors import GgextError, ModelError
from ggext.folders import cache_folder
from ggext.footprint.machine import processor
from ggext.gguf.plain_files import private_file
from ggext.llama_cpp_facts.pin import LLAMA_CPP_PYTHON
from ggext.runtime.child import Child

_TRIAL = "ggext.runtime.kernel_trial:main"
_FORM = 1  # of the files in the cache; another one is not read
# ``batches``: the columns to multiply with. A token's one and those of a prompt have kernels of
# their own.
_SMALL = {"rows": 64, "columns": 512, "repeats": 1, "batches": [1, 32]}
_TIMED = {"rows": 1024, "columns": 1024, "repeats": 3, "batches": [64]}
#: Signals that the same instructions raise again; a SIGKILL comes from elsewhere.
_REPEATABLE = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGTRAP")
_PATIENCE = 120.0  # seconds; the small products take a tenth of one
_MOST_CHILDREN = 8
# The kernels round their inputs to 8 bits in blocks of different sizes; wrong ones are far off.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """What the matrix kernels of one library do on one processor."""

    # ggml's buffer types whose kernels end the process or compute something else, each with how.
    unusable: Mapping[str, str] = field(default_factory=dict)
    # How the plain kernels end the process; empty where they work.
    fatal: str = ""
    # Why nothing could be tried; empty where it was.
    untested: str = ""

    @property
    def extra_buffers(self) -> bool:
        """Whether llama.cpp may lay out weights for special kernels (``use_extra_bufts``)."""
        return not self.unusable

    @property
    def notice(self) -> str:
        """A sentence for the user where something is switched off, else nothing."""
        if not self.unusable:
            return ""
        reasons = "; ".join(
            f"{name}: {reason}" for name, reason in self.unusable.items()
        )
        return (
            f"llama.cpp's special matrix kernels are switched off, because they do not work on "
            f"this processor ({reasons}). `ggext doctor` says what that costs and what to do"
        )


def find_library() -> Path | None:
    """The llama library that llama-cpp-python will load, without importing it; None without it."""
    folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    if folder is None:
        try:
            spec = importlib.util.find_spec("llama_cpp")
        except (ImportError, ValueError):
            return None
        if spec is None or spec.origin is None:
            return None
        folder = os.path.join(os.path.dirname(spec.origin), "lib")
    names = ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll")
    paths = (Path(os.path.abspath(folder), name) for name in names)
    return next((path for path in paths if path.is_file()), None)


def check() -> Verdict:
    """The verdict on the installed library. Raises ModelError where not even its plain kernels run.

    Called before the library is loaded: it may end the process that loads it.
    """
    verdict = find_verdict()
    if verdict.fatal:
        raise ModelError(
            f"{find_library()} cannot be used on this processor: {verdict.fatal}. It was built for "
            f"another processor, or built wrongly; build it here: {rebuild_command()}"
        )
    return verdict


def find_verdict() -> Verdict:
    """The verdict on the installed library, whatever it is: kept, or found out now."""
    library = find_library()
    return (
        Verdict(untested="there is no llama library")
        if library is None
        else _verdict(library)
    )


def rebuild_command() -> str:
    """The command that builds llama-cpp-python for this processor, without AMX."""
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    arguments = ""
    if _has_amx():
        arguments = (
            f"CMAKE_ARGS=\"-DCMAKE_C_FLAGS='{flags}' -DCMAKE_CXX_FLAGS='{flags}'\" "
        )
    return (
        f"{arguments}pip install --force-reinstall --no-deps --no-cache-dir "
        f'--no-binary llama-cpp-python "llama-cpp-python=={LLAMA_CPP_PYTHON}"'
    )


@cache
def _verdict(library: Path) -> Verdict:
    kept = _cache_file(library)
    verdict = _read(kept)
    if verdict is None:
        verdict, is_certain = _try(library)
        if is_certain:
            _write(kept, verdict)
    return verdict


def _try(library: Path) -> tuple[Verdict, bool]:
    """The verdict, and whether another trial would say the same."""
    unusable: dict[str, str] = {}
    for _ in range(_MOST_CHILDREN):
        outcome = _run(library, _SMALL, unusable)
        unusable.update(outcome.different())
        if outcome.is_complete:
            return Verdict(unusable), True
        if outcome.signal not in _REPEATABLE:
            return Verdict(_untested_amx(), untested=outcome.ended), False
        if outcome.is_plain:
            return Verdict(unusable, fatal=f"{outcome.ended} {outcome.place}"), True
        unusable[outcome.tried[0]] = f"{outcome.ended} {outcome.place}"
    return Verdict(unusable), True


def _untested_amx() -> dict[str, str]:
    """Where nothing can be tried, what is known to be compiled wrongly is left out."""
    return {"AMX": "not tested, and some compilers break them"} if _has_amx() else {}


@dataclass(frozen=True)
class Outcome:
    """What a child process said, and how it ended."""

    # Its messages (see `kernel_trial`).
    messages: Sequence[Sequence[Any]]
    # The name of the signal that ended the child, or nothing.
    signal: str = ""
    # How it ended, in words, where it did not come to its end.
    ended: str = ""

    @property
    def is_complete(self) -> bool:
        return self.messages[-1:] == [["done"]]

    @property
    def tried(self) -> tuple[str, str]:
        """Buffer type and tensor type of the last product; empty while the library was loaded."""
        last = self.messages[-1] if self.messages else []
        return (last[1], last[2]) if len(last) > 2 else ("", "")

    @property
    def place(self) -> str:
        """Where it ended: ``at a Q4_1 matrix``."""
        tensor_type = self.tried[1]
        return f"at a {tensor_type} matrix" if tensor_type else "when it is loaded"

    @property
    def is_plain(self) -> bool:
        """Whether it ended before any special kernel: with the first buffer type, or earlier."""
        first = next(
            (message[1] for message in self.messages if message[0] == "try"), ""
        )
        return self.tried[0] in ("", first)

    def products(self) -> list[tuple[str, str, float, float]]:
        """Buffer type, tensor type, microseconds and relative difference of each product."""
        done = (message[1:] for message in self.messages if message[0] == "ok")
        return [(str(b), str(t), float(us), float(off)) for b, t, us, off in done]

    def different(self) -> dict[str, str]:
        """Buffer types whose kernels compute something else than the plain ones."""
        return {
            buffer_type: f"the product with a {name} matrix is {off:.0%} off"
            for buffer_type, name, _, off in self.products()
            if not off <= _TOLERANCE  # not a number is off, too
        }


def _run(library: Path, sizes: Mapping[str, Any], left_out: Iterable[str]) -> Outcome:
    """A child that tries the library, without some buffer types."""
    if not _can_start_python():
        return Outcome(
            [], ended=f"{sys.executable or 'this host'} is no Python to start"
        )
    try:
        child = Child(_TRIAL)
    except GgextError as error:
        return Outcome([], ended=str(error))
    messages: list[list[Any]] = []
    with child, child.limited(_PATIENCE):
        child.send({"library": str(library), "left_out": list(left_out), **sizes})
        while (message := child.receive()) is not None:
            messages.append(message)
        if messages[-1:] == [["done"]]:
            return Outcome(messages)
        death = child.died()
    # What it printed last explains an abort; before an illegal instruction it is about nothing.
    illegal = "a trial died of SIGILL, an illegal instruction,"
    ended = illegal if death.signal == "SIGILL" else str(death)
    return Outcome(messages, death.signal or "", ended)


def _can_start_python() -> bool:
    """Not in a program that embeds Python and is its own executable: it would start again."""
    if getattr(sys, "frozen", False):
        return True  # `Child` knows
    from multiprocessing import spawn  # takes longer than all the rest of this module

    name = os.path.basename(os.fsdecode(spawn.get_executable() or "")).lower()
    return name.startswith(("python", "pypy"))


def speeds(verdict: Verdict) -> list[tuple[str, str, float]]:
    """Buffer type, tensor type and microseconds of products of a 1,024 × 1,024 matrix with 64
    columns on one thread, without the buffer types that are unusable."""
    library = find_library()
    if library is None or verdict.fatal:
        return []
    outcome = _run(library, _TIMED, verdict.unusable)
    return [product[:3] for product in outcome.products()]


def _cache_file(library: Path) -> Path:
    """One for each build of the library on each processor."""
    stats = [(path.name, path.stat()) for path in sorted(library.parent.iterdir())]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    identity = json.dumps([_FORM, str(library), files, processor()])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return cache_folder() / "kernels" / f"{digest}.json"


def _has_amx() -> bool:
    return " amx_tile" in processor()


def _read(path: Path) -> Verdict | None:
    """What was kept; None where nothing was, or where it is damaged."""
    with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        unusable = {str(name): str(reason) for name, reason in kept["unusable"].items()}
        return Verdict(unusable, str(kept["fatal"]))
    return None


def _write(path: Path, verdict: Verdict) -> None:
    """Where it cannot be kept, the next process tries again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with private_file(path) as file:
            file.write(json.dumps(asdict(verdict)).encode("utf-8"))
