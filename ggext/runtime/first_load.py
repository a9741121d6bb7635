"""The first load of a file that this llama.cpp has not seen: in a child, as it may end its process.

llama.cpp asserts where it could refuse, and `ggext.runtime.precheck` knows only what was thought
of. So before a file is loaded here, a child loads it and evaluates a few tokens. That it survived
is kept in the user's cache, by the file's header, size, inode and time of change and by the
library's; the second time costs reading the header and a look for a small file.

GGEXT_FIRST_LOAD=here in the environment does without, as does a program that can start no child.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ggext.errors import EngineDiedError, ModelError, OutputError, UsageError
from ggext.folders import cache_folder
from ggext.gguf.reader import GgufFile
from ggext.gguf.shards import model_parts
from ggext.runtime import child
from ggext.runtime.child import Child

Progress = Callable[[float], bool]

_SERVE = "ggext.runtime.first_load_child:serve"
_FORM = "1"  # of what is tried: another one is tried again
_KEPT = 1000  # files that are remembered

_log = logging.getLogger(__name__)


def untried(header: GgufFile, gpu_layers: int | None) -> Path | None:
    """Where it will be kept that a child has survived the file; None where that is known, and where
    this process is such a child itself or is asked to do without."""
    if child.is_child() or child.is_unwanted():
        return None
    try:
        folder = cache_folder()
    except OutputError:  # without a home nothing is remembered
        folder = Path(os.devnull)
    kept = folder / "loads" / _identity(header, gpu_layers)
    return None if kept.exists() else kept


def survive(
    header: GgufFile, gpu_layers: int | None, kept: Path, progress: Progress | None
) -> bool:
    """Has a child load the file and evaluate a few tokens; ``kept``: see `untried`. False: the
    ``progress``, which is called with 0.0 to 1.0, cancelled it.

    What llama.cpp refuses is left to the load that follows. Raises EngineDiedError.
    """
    try:
        process = Child(_SERVE)
    except (ModelError, UsageError) as error:
        _log.warning("%s is loaded without a trial: %s", header.path, error)
        return True
    with process:
        return _followed(process, header, gpu_layers, progress, kept)


def _followed(
    process: Child,
    header: GgufFile,
    gpu_layers: int | None,
    progress: Progress | None,
    kept: Path,
) -> bool:
    process.send({"path": str(header.path.absolute()), "gpu_layers": gpu_layers})
    while (message := process.receive()) is not None:
        if "result" in message:
            if message["result"]:
                _keep(kept)
            return True
        if progress is not None and not progress(message["loaded"]):
            process.kill()
            return False
    death = process.died()
    raise EngineDiedError(
        f"{header.path} was tried in a child process and is not loaded: {death}; the file is "
        "damaged or made to do this, unless memory ran out: get it again",
        death.signal,
        death.status,
    )


def _identity(header: GgufFile, gpu_layers: int | None) -> str:
    """Of the file, the library, and where its layers go. The header is hashed, as it is what makes
    llama.cpp's graphs; of the tensors' data the size and the time of change are looked at."""
    digest = hashlib.sha256(f"{_FORM} {gpu_layers}\n".encode())
    for part in model_parts(header):
        with part.path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest.update(
                f"{status.st_ino} {status.st_size} {status.st_mtime_ns}\n".encode()
            )
            digest.update(file.read(part.data_offset))
    for path in _libraries():
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _libraries() -> Iterator[Path]:
    """llama.cpp's shared libraries, without loading them."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None and spec.origin is not None:
        yield from sorted(
            path for path in (Path(spec.origin).parent / "lib").glob("*.*")
        )


def _keep(kept: Path) -> None:
    """Where it cannot be kept, the next load tries again."""
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()
        others = sorted(kept.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in others[:-_KEPT]:
            old.unlink(missing_ok=True)
