"""Whether llama.cpp opens what is being written, known before the file gets its name.

Of a checkpoint llama.cpp itself reads the finished header, while the data is copied
(`ggext.runtime.header_trial`). Where it is not installed, and for a GGUF file, whose header was a
file's already, the same rules stand in a table (`ggext.runtime.refusals`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ggext.errors import GgufError, OutputError
from ggext.gguf.header import alignment_of, pack_header, packed_length, roomy_length
from ggext.gguf.types import Field, aligned
from ggext.gguf.writer import TensorToWrite, layout
from ggext.runtime.closing import Closing
from ggext.runtime.refusals import refusal


class Trial(Closing):
    """Of one output: `begin` with what its header says, `check` before it gets its name."""

    def __init__(self, out: Path) -> None:
        self._out = out
        from ggext.runtime.header_trial import HeaderTrial  # not for a plan alone

        self._trial = HeaderTrial()
        self._by_table: str | None = None
        self._hollow: Path | None = None

    def close(self) -> None:
        """Ends the trial and removes its file; further calls do nothing."""
        self._trial.close()
        if self._hollow is not None:
            self._hollow.unlink(missing_ok=True)

    def begin(
        self, fields: Mapping[str, Field], tensors: Sequence[TensorToWrite]
    ) -> Mapping[str, Field]:
        """Gives ``fields`` back. Does not wait for the answer."""
        if self._trial.is_possible:
            with suppress(OSError):  # no room for a file of holes: by the table
                self._hollow = _hollow_file(fields, tensors)
                self._trial.ask(self._hollow)
        if self._hollow is None:
            self._by_table = refusal(fields)
        return fields

    def check(self) -> None:
        """Raises ``OutputError`` where llama.cpp would not open the file."""
        reason = self._by_table if self._hollow is None else self._trial.refusal()
        if reason is not None:
            raise OutputError(
                f"{self._out} is not written, since llama.cpp would not open it: {reason}"
            )


def _hollow_file(fields: Mapping[str, Field], tensors: Sequence[TensorToWrite]) -> Path:
    """A file with the whole header and holes for the data, which the caller removes."""
    alignment = alignment_of(fields)
    infos = layout(tensors, alignment)
    start = roomy_length(packed_length(fields, infos), alignment)
    end = aligned(infos[-1].offset + infos[-1].nbytes, alignment) if infos else 0
    with tempfile.NamedTemporaryFile(
        prefix="ggext-", suffix=".gguf", delete=False
    ) as file:
        try:
            file.write(pack_header(fields, infos, start))
            file.truncate(start + end)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return Path(file.name)


def check_source(path: Path, fields: Mapping[str, Field]) -> None:
    """Raises ``GgufError`` for a GGUF file that llama.cpp does not open, so that no second one is
    made of it."""
    reason = refusal(fields)
    if reason is not None:
        raise GgufError(f"{path}: llama.cpp does not open this file: {reason}")
