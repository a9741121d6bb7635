"""What of the machine a model may use: cores, memory, and the places that ggext writes to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ggext.doctor.report import Finding
from ggext.errors import OutputError
from ggext.folders import cache_folder, state_folder
from ggext.footprint.defaults import cores_of_affinity, physical_cores
from ggext.footprint.machine import core_quota, free_memory

#: Name → its folder, and what is lost where nothing can be written there.
_PLACES: dict[str, tuple[Callable[[], Path], str]] = {
    "chats": (state_folder, "chats and what was typed are not kept"),
    "cache": (cache_folder, "what was found out or fetched is not kept"),
}
_VARIABLES = {"chats": "XDG_STATE_HOME", "cache": "XDG_CACHE_HOME"}


def findings() -> Iterator[Finding]:
    """Nothing is written but a file without a name, which is gone at once."""
    yield Finding("machine", "cores", "ok", _cores())
    free = free_memory()
    room = "not known" if free is None else f"{free / 2**30:.1f} GiB free"
    yield Finding("machine", "memory", "ok", room)
    for name, (folder_of, lost) in _PLACES.items():
        yield _place(name, folder_of, lost)
    yield _place(
        "temporary files",
        lambda: Path(tempfile.gettempdir()),
        "llama.cpp cannot be started or asked",
    )


def _cores() -> str:
    """How many there are, and what allows fewer."""
    words = [f"{os.cpu_count() or 1} here"]
    allowed = cores_of_affinity()
    quota = core_quota()
    if hasattr(os, "sched_getaffinity"):
        words.append(f"{allowed} physical by the affinity of this process")
    if quota is not None:
        words.append(f"{quota:g} by its container's quota")
    return f"{', '.join(words)}: a model runs with {physical_cores()}"


def _place(name: str, folder_of: Callable[[], Path], lost: str) -> Finding:
    variable = _VARIABLES.get(name, "TMPDIR")
    try:
        folder = folder_of()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OutputError as error:
        return Finding("machine", name, "missing", f"{error}: {lost}")
    except OSError as error:
        value = f"cannot be written: {error.strerror or error}: {lost}"
        return Finding("machine", name, "missing", value, f"{variable}=FOLDER ggext …")
    return Finding("machine", name, "ok", str(folder))
