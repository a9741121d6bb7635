"""A LoRA adapter on a context, held to the model that it was trained for."""

from __future__ import annotations

import ctypes
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import GgufError, ModelError
from ggext.gguf.open import read_gguf
from ggext.gguf.rope import effective_table
from ggext.gguf.shards import whole_header
from ggext.rope.keys import query_scale
from ggext.runtime import llama

if TYPE_CHECKING:
    from ggext.gguf.reader import GgufFile
    from ggext.runtime.model import Model

#: What an adapter of ggext says of its base: `fingerprint`, and the file's name for messages.
BASE_KEY, BASE_NAME_KEY = "ggext.adapter.base", "ggext.adapter.base_name"
#: A norm that no quantization and no fold changes, and every further training does.
_NORM = "output_norm.weight"
_DIGITS = 6


def fingerprint(header: GgufFile) -> str:
    """What an adapter fits: the architecture, the shapes, the RoPE table with what is folded into
    the weights, and which training the weights come from. The same for a file and its quantized
    copies."""
    table = effective_table(header, by_ggext=True)
    whole = whole_header(header)
    shapes = sorted((name, info.shape) for name, info in whole.tensors.items())
    frequencies = [f"{value:.{_DIGITS}e}" for value in table.inv_freq]
    gains = (f"{table.attention_factor:.5f}", f"{query_scale(header.arch_keys()):.5f}")
    digest = hashlib.sha256(repr((header.arch, shapes, frequencies, gains)).encode())
    if _NORM in header.tensors:
        digest.update(header.float_tensor(_NORM).tobytes())
    return digest.hexdigest()


def check_adapter(path: Path, model: Model) -> None:
    """Raises ``GgufError`` for a file that is no adapter, or one for another base."""
    header = read_gguf(path, any_kind=True)
    if header.get("general.type") != "adapter":
        raise GgufError(f"{path} is not an adapter: its general.type says otherwise")
    if header.arch != model.header.arch:
        raise GgufError(
            f"{path} is an adapter for the architecture {header.arch}, and {model.path} is "
            f"{model.header.arch}"
        )
    base = header.get(BASE_KEY)
    if base is not None and base != fingerprint(model.header):
        raise GgufError(
            f"{path} was trained on {header.get(BASE_NAME_KEY)}, and {model.path} has another RoPE "
            "table, other shapes or other weights: it would answer wrongly without a word; take "
            "the file that it was trained on"
        )


def attach(path: Path, model: Model, context: Any) -> None:
    """Puts an adapter on a context of llama.cpp, at full strength; it is freed with the model.

    Raises ``GgufError`` as `check_adapter` does, and ``ModelError``."""
    check_adapter(path, model)
    module = llama.lib()
    llama.clear_log()
    adapter = module.llama_adapter_lora_init(model.open_handle(), os.fsencode(path))
    if not adapter:
        raise llama.failure(f"the adapter {path} cannot be loaded")
    pointer = module.llama_adapter_lora_p_ctypes
    adapters = (pointer * 1)(ctypes.cast(adapter, pointer))
    if (
        module.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))
        != 0
    ):
        raise ModelError(f"the adapter {path} cannot be put on {model.path}")
