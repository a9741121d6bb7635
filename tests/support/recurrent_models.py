"""Small random models with a state in place of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiny_gguf import write_random

from ggext.runtime.engine import Model


@contextmanager
def recurrent_model(folder: Path, arch: str, context: int) -> Iterator[Model]:
    """One that is made for so many tokens, opened."""
    path = folder / "model.gguf"
    write_random(path, arch, extra_keys={f"{arch}.context_length": context})
    with Model.open(path) as model:
        assert model.is_recurrent
        yield model
