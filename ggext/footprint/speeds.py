"""What `ggext doctor --measure` found out about this processor, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from ggext.errors import OutputError
from ggext.folders import cache_folder
from ggext.footprint.architecture import Architecture
from ggext.footprint.defaults import physical_cores
from ggext.footprint.machine import processor
from ggext.gguf.plain_files import private_file
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT

_FORM = 1  # of the file; another one is not read
#: Says that a context of any length is read faster so.
ANY_LENGTH = 1 << 26


def flash_until(arch: Architecture) -> int:
    """Tokens of the longest context that this processor reads faster with flash attention, 0 where
    none is or nothing was measured: by the measured heads whose size is nearest."""
    try:
        measured = _kept(_file())
    except OutputError:
        return 0
    sizes = {layer.key for layer in arch.layers if layer.heads}
    if not measured or not sizes:
        return 0
    return min(
        measured[min(measured, key=lambda head: abs(head - size))] for size in sizes
    )


def keep(until: Mapping[int, int]) -> None:
    """Keeps, for each size of heads, the longest context to read with flash attention. Raises
    OutputError."""
    path = _file()
    document = {"form": _FORM, "flash_until": {str(k): v for k, v in until.items()}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with private_file(path) as file:
            file.write(json.dumps(document).encode("ascii"))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    _kept.cache_clear()


def _file() -> Path:
    """One for each processor, number of cores, and version of llama.cpp."""
    identity = json.dumps([_FORM, LLAMA_CPP_COMMIT, processor(), physical_cores()])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return cache_folder() / "speeds" / f"{digest}.json"


@cache
def _kept(path: Path) -> Mapping[int, int]:
    """Empty where nothing was kept, or where it is damaged."""
    with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
        document = json.loads(path.read_text(encoding="ascii"))
        if document["form"] == _FORM:
            return {int(k): int(v) for k, v in document["flash_until"].items()}
    return {}
