"""The folder of a run: what it was asked for, and how far it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.files import read_json
from ggext.errors import OutputError, UsageError
from ggext.gguf.writer import whole_file

if TYPE_CHECKING:
    from ggext.tune.documents import Document

_REQUEST = "request.json"


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run is written."""

    path: Path

    def stage(self, number: int) -> Path:
        """Of one stage, from 1 on: the trainer's checkpoints."""
        return self.path / f"stage-{number}"

    @property
    def checkpoint(self) -> Path:
        """The tuned model, for transformers."""
        return self.path / "checkpoint"

    def begin(self, request: dict[str, object], *, resume: bool) -> None:
        """Makes the folder, or checks that it is of the same run. Raises OutputError, UsageError.

        ``request``: all that decides what is trained."""
        before = read_json(self.path / _REQUEST) if self.path.is_dir() else None
        if before is not None:
            self._check_same(before, request, resume=resume)
            return
        if resume:
            raise UsageError(
                f"{self.path} holds no run to go on with; leave out --resume"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OutputError(f"{self.path} is not empty; name another folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}") from None
        self.write(_REQUEST, json.dumps(request, indent=2))

    def _check_same(
        self, before: Mapping[str, Any], request: dict[str, object], *, resume: bool
    ) -> None:
        if not resume:
            raise OutputError(
                f"{self.path} holds a run already: --resume continues it, or name another folder"
            )
        now = json.loads(json.dumps(request))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise UsageError(
                    f"{self.path} was started with {key} {before.get(key)!r:.80}, and this run has "
                    f"{now.get(key)!r:.80}: ask for the same, or name another folder"
                )

    def write(self, name: str, text: str) -> Path:
        """A small file, whole or absent."""
        path = self.path / name
        data = text.encode("utf-8")
        with whole_file(path, len(data)) as file:
            file.write(data)
        return path

    def write_held_out(self, texts: Iterable[str]) -> tuple[Path, ...]:
        """The texts that the evaluation is on, as files."""
        (self.path / "held-out").mkdir(exist_ok=True)
        return tuple(
            self.write(f"held-out/{number:04}.txt", text)
            for number, text in enumerate(texts, 1)
        )


def digest(documents: Iterable[Document]) -> str:
    """Of all texts: another text is another run."""
    hasher = hashlib.sha256()
    for document in documents:
        hasher.update(repr((document.text, document.messages)).encode("utf-8") + b"\0")
    return hasher.hexdigest()[:16]
