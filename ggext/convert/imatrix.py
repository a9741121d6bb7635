"""Importance matrices, as llama.cpp's imatrix tool writes them: mean squared activations of each
column of a weight.

Two forms are read as its quantizer reads them (common/imatrix-loader.cpp,
tools/quantize/quantize.cpp): GGUF files with sums and counts, and the older .dat files.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.convert.model_source import SourceTensor
from ggext.convert.tensor_types import TypePlan
from ggext.errors import GgufError, UsageError
from ggext.gguf.plain_files import open_plain, read_plain
from ggext.gguf.types import F32, MAGIC

if TYPE_CHECKING:
    import numpy as np

    Means = np.ndarray[Any, np.dtype[np.float32]]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NAME = 512
_MAX_BYTES = 1 << 32  # some numbers for each column of a matrix


@dataclass(frozen=True)
class Imatrix:
    """``entries``: tensor → float32 means, one for each column, of all experts one after the
    other."""

    path: Path
    entries: Mapping[str, Means]
    datasets: tuple[str, ...]
    chunks: int

    def metadata(self) -> dict[str, Any]:
        """What llama-quantize writes into the file about it; of the path the name only."""
        values = {
            "file": self.path.name,
            "dataset": self.datasets[0] if self.datasets else None,
            "entries_count": len(self.entries),
            "chunks_count": self.chunks or None,
        }
        return {
            f"quantize.imatrix.{key}": value
            for key, value in values.items()
            if value is not None
        }


def read_imatrix(path: Path) -> Imatrix:
    """Raises ``GgufError`` for a file that is neither form, is cut short or has values that are no
    numbers."""
    import numpy as np

    try:
        with os.fdopen(open_plain(path), "rb") as file:
            magic = file.read(4)
        imatrix = _read_gguf(path) if magic == MAGIC else _read_dat(path)
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror or error}; check the path") from None
    for name, means in imatrix.entries.items():
        if not np.isfinite(means).all() or (means < 0).any():
            raise GgufError(
                f"{path}: the entry of {name} has values that no mean of squares has, not finite "
                "or negative; make the matrix again"
            )
    return imatrix


def _read_gguf(path: Path) -> Imatrix:
    import numpy as np

    from ggext.gguf.open import read_gguf

    gguf = read_gguf(path, any_kind=True)
    entries = {}
    for name in [n.removesuffix(_SUMS) for n in gguf.tensors if n.endswith(_SUMS)]:
        both = [gguf.tensors.get(name + end) for end in (_SUMS, _COUNTS)]
        if any(info is None or info.type != F32 for info in both):
            raise GgufError(
                f"{path}: the sums and counts of {name} are not both there in F32; make the matrix "
                "again"
            )
        sums, counts = (gguf.float_tensor(name + end) for end in (_SUMS, _COUNTS))
        if sums.size % counts.size:
            raise GgufError(
                f"{path}: {name} has {sums.size} sums for {counts.size} counts; make the matrix "
                "again"
            )
        times = np.rint(counts)[:, None]
        sums = sums.reshape(counts.size, -1)
        entries[name] = np.divide(
            sums, times, out=np.ones_like(sums), where=times > 0
        ).reshape(-1)
    if not entries:
        raise GgufError(
            f"{path} is a GGUF file but no importance matrix: it has no tensor named *{_SUMS}"
        )
    datasets = gguf.get("imatrix.datasets", ())
    return Imatrix(
        path,
        entries,
        tuple(map(str, datasets)),
        int(gguf.get("imatrix.chunk_count", 0)),
    )


def _read_dat(path: Path) -> Imatrix:
    """int32 count; for each entry int32 length, name, int32 calls, int32 n, n float32; then int32
    chunks, and the length and name of the text, both optional."""
    import numpy as np

    data = read_plain(path, _MAX_BYTES)
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        if at > len(data):
            raise GgufError(
                f"{path} is no importance matrix, or it was cut short (at byte {at - 4})"
            )
        return int(struct.unpack_from("<i", data, at - 4)[0])

    def taken(nbytes: int, most: int) -> bytes:
        nonlocal at
        if not 0 < nbytes <= min(most, len(data) - at):
            raise GgufError(
                f"{path} is no importance matrix, or it was cut short (at byte {at})"
            )
        at += nbytes
        return data[at - nbytes : at]

    entries: dict[str, Means] = {}
    for _ in range(number()):
        name = taken(number(), _MAX_NAME).decode("utf-8", "replace")
        calls = number()
        sums = np.frombuffer(taken(4 * number(), len(data)), "<f4")
        entries[name] = (sums / np.float32(max(1, calls))).astype(np.float32)
    if not entries:
        raise GgufError(f"{path} is no importance matrix: it has no entries")
    chunks = number() if at < len(data) else 0
    dataset = (
        taken(number(), len(data)).decode("utf-8", "replace") if at < len(data) else ""
    )
    datasets = (dataset,) if dataset else ()
    return Imatrix(path, entries, datasets, max(0, chunks))


def imatrix_for(
    path: Path | None, types: TypePlan, tensors: Sequence[SourceTensor]
) -> tuple[Imatrix | None, list[str]]:
    """The matrix in ``path`` for llama.cpp's quantizer, ``None`` without one, and notes on it.
    Raises ``UsageError`` where nothing is quantized, or the matrix is of another model."""
    if path is None:
        return None, []
    if types.quantization is None:
        raise UsageError(
            f"imatrix={path} is for llama.cpp's quantizer; choose one of its types, such as Q4_K_M"
        )
    imatrix = read_imatrix(path)
    weights = [
        t.name
        for t in tensors
        if len(t.shape) > 1 and t.name not in ("token_embd.weight", "output.weight")
    ]
    without = [name for name in weights if name not in imatrix.entries]
    if len(without) == len(weights):
        raise UsageError(
            f"imatrix={path} knows no tensor of this model; it was made from another one"
        )
    if not without:
        return imatrix, []
    note = (
        f"{path.name} says nothing of {len(without)} of {len(weights)} tensors, first "
        f"{without[0]}"
    )
    return imatrix, [note]
