"""Tiny random models with sliding windows, of every way in which their layers rotate."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny_gguf import base_of, write_random

from ggext.runtime.engine import MemoryOptions, SessionOptions
from ggext.runtime.memory import WhenFull

WINDOW = 64
#: gemma2 and gpt-oss: all layers alike. olmo2, gemma3: a table of their own. cohere2, exaone4:
#: layers that see everything do not rotate. gemma4: heads of two sizes.
ARCHITECTURES = (
    "cohere2",
    "exaone4",
    "gemma2",
    "gemma3",
    "gemma4",
    "gpt-oss",
    "olmo2",
)
_EXAONE_LAYERS = 64  # a model of another depth has no windows


def windowed(folder: Path, arch: str) -> Path:
    """A file whose layers see so few tokens."""
    keys: dict[str, Any] = {
        f"{arch}.attention.sliding_window": WINDOW,
        f"{arch}.context_length": 4096,
    }
    more = {}
    if arch == "exaone4":
        keys["exaone4.block_count"] = _EXAONE_LAYERS
        _, tensors = base_of(arch)
        first = {name: rows for name, rows in tensors.items() if name[:6] == "blk.0."}
        more = {
            f"blk.{layer}.{name[6:]}": rows
            for layer in range(2, _EXAONE_LAYERS)
            for name, rows in first.items()
        }
    return write_random(
        folder / f"{arch}.gguf", arch, extra_keys=keys, extra_tensors=more
    )


def moving(when_full: WhenFull, n_ctx: int = 256, **memory: Any) -> SessionOptions:
    """32-bit values, so that batches of another size round alike."""
    return SessionOptions(
        n_ctx=n_ctx,
        n_batch=32,
        kv_type="f32",
        memory=MemoryOptions(when_full, **memory),
    )


def some(rng: random.Random, count: int) -> list[int]:
    """Tokens that every tiny model has."""
    return [rng.randrange(3, 250) for _ in range(count)]
