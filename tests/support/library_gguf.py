"""GGUF files as the ``gguf`` library writes them: without slack, the data where the header happens
to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TOKENS = [f"token {i}" for i in range(500)]


def library_file(
    path: Path,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    *,
    alignment: int = 32,
    tokens: int = 500,
    **keys: Any,
) -> Path:
    """A header of some 12 KB in front of ``tensors`` (two by default, 40 KB)."""
    from gguf import GGUFWriter

    random = np.random.default_rng(0)
    if tensors is None:
        tensors = {
            "a": random.normal(size=(100, 96)).astype("f4"),
            "b": random.normal(size=33).astype("f4"),
        }
    writer = GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_context_length(64)
    writer.add_rope_freq_base(10000.0)
    for key, value in keys.items():
        writer.add_key_value(key.replace("__", "."), *value)
    writer.add_token_list(TOKENS[:tokens])
    writer.add_token_scores([0.5] * tokens)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
