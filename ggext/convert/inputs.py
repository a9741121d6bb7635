"""The files that a model is read from, as they were before: a header is read first, tensors much
later, and what another program writes in between must not become half of a new model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ggext.errors import OutputError
from ggext.gguf.shards import all_parts

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}


@dataclass(frozen=True)
class Inputs:
    """Which files there were, and of each its bytes and when it was last written to."""

    written: Mapping[Path, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Path) -> Inputs:
        """Those of a GGUF file in all its parts, or the weights in a checkpoint's folder."""
        paths = all_parts(model)
        with suppress(OSError):
            if model.is_dir():
                paths = [path for path in model.iterdir() if path.suffix in _WEIGHTS]
        return cls({path: _written(path) for path in paths})

    def check(self) -> None:
        """Raises OutputError where one of them is not as it was."""
        for path, before in self.written.items():
            if _written(path) != before:
                raise OutputError(
                    f"{path} was changed by another program while it was read; nothing was "
                    "written: try again"
                )


def _written(path: Path) -> tuple[int, int]:
    """Nothing where it is not there: then whoever reads it says so."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
