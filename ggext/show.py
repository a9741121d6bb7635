"""The card of a GGUF file: what a user wants to know of a model, from its header alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggext.gguf.open import read_gguf
from ggext.gguf.shards import metadata_part
from ggext.inspect import Inspection, inspect

#: Marks in a chat template → what it is called.
_TEMPLATES = {
    "<|start_header_id|>": "Llama 3",
    "<start_of_turn>": "Gemma",
    "<|im_start|>": "ChatML",
    "<|channel|>": "Harmony",
    "[INST]": "Mistral",
    "<|end|>": "Phi",
    "<｜User｜>": "DeepSeek",
}


@dataclass(frozen=True)
class Card:
    """A model in the terms of a user."""

    inspection: Inspection
    # As the file names its types: Q4_K_M, F16; empty where it does not say.
    quantization: str
    license: str
    # Who made it, and what it was made from; empty where the file does not say.
    author: str
    base_models: tuple[str, ...]
    languages: tuple[str, ...]
    layers: int
    # Of the embedding, and of one head.
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    tokenizer: str
    # The name of a known form, "its own" for another one; empty where there is none.
    template: str
    # Tokens of the layers that see only the latest ones; 0 where all see everything.
    sliding_window: int

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "inspection": self.inspection.as_dict()}


def show(path: Path) -> Card:
    """Raises ``GgufError`` for a damaged file."""
    gguf = read_gguf(metadata_part(path))
    keys = gguf.arch_keys()
    template = gguf.get("tokenizer.chat_template", "")
    kv_heads = keys.get("attention.head_count_kv", 0)
    bases = range(_number(gguf.get("general.base_model.count", 0)))
    template = _template_name(template) if isinstance(template, str) else ""
    kv_heads = (
        max(map(_number, kv_heads), default=0)
        if isinstance(kv_heads, list)
        else _number(kv_heads)
    )
    return Card(
        inspection=inspect(path),
        quantization=_quantization(gguf.get("general.file_type")),
        license=str(gguf.get("general.license", "")),
        author=str(gguf.get("general.organization", gguf.get("general.author", ""))),
        base_models=tuple(
            str(gguf.get(f"general.base_model.{i}.name", "")) for i in bases
        ),
        languages=tuple(map(str, gguf.get("general.languages", []))),
        layers=_number(keys.get("block_count", 0)),
        width=_number(keys.get("embedding_length", 0)),
        heads=_number(keys.get("attention.head_count", 0)),
        kv_heads=kv_heads,
        vocabulary=len(gguf.get("tokenizer.ggml.tokens", [])),
        tokenizer=str(
            gguf.get("tokenizer.ggml.pre", gguf.get("tokenizer.ggml.model", ""))
        ),
        template=template,
        sliding_window=_number(keys.get("attention.sliding_window", 0)),
    )


def _number(value: Any) -> int:
    """A stranger's key: a whole number, or nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _quantization(file_type: Any) -> str:
    from ggext.gguf.tables import constants

    names = {int(kind): kind.name for kind in constants.LlamaFileType}
    return (
        names.get(_number(file_type), "").removeprefix("MOSTLY_").removeprefix("ALL_")
    )


def _template_name(template: str) -> str:
    if not template:
        return ""
    return next(
        (name for mark, name in _TEMPLATES.items() if mark in template), "its own"
    )
