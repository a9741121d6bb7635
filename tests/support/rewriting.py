"""GGUF files with other keys, as another program would have written them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf


def rewritten(
    source: Path, out: Path, changes: dict[str, Any], drop: Iterable[str] = ()
) -> Path:
    """Writes the file again, with changed keys and without dropped keys and tensors."""
    gguf = read_gguf(source)
    fields = {k: f for k, f in gguf.fields.items() if k not in drop}
    fields |= {k: Field.of(v) for k, v in changes.items()}
    tensors = [as_written(gguf, name) for name in gguf.tensors if name not in drop]
    write_gguf(out, fields, tensors)
    return out


def as_written(gguf: GgufFile, name: str) -> TensorToWrite:
    t = gguf.tensors[name]
    return TensorToWrite(
        name, t.shape, t.type, t.nbytes, lambda: [gguf.tensor_data(name)]
    )
