"""What the authors of well-known models publish of their RoPE, by what a GGUF file says of itself.

A file is one of these models, or was made from one, if its architecture, its unscaled base and its
context are theirs (and, where two models share these, its width). Each row names the page that
says so; the numbers stand in the ``config.json`` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggext.rope.capabilities import CAPABILITIES
from ggext.rope.scaling import RopeScaling

NONE = RopeScaling()


@dataclass(frozen=True)
class KnownModel:
    """A model, or a series of models that rotate alike."""

    # As a sentence names it.
    name: str
    # llama.cpp's architectures.
    archs: tuple[str, ...]
    # rope_theta.
    base: float
    # The context that files of it state, in tokens.
    context: int
    # The scaling that belongs to the model itself.
    own: RopeScaling
    # Where that is published.
    source: str
    # embedding_length, where others share all of the above; empty for any.
    widths: tuple[int, ...] = ()
    # What its authors publish for longer texts.
    extension: RopeScaling | None = None


def _llama3(factor: float) -> RopeScaling:
    return RopeScaling(
        "llama3",
        factor=factor,
        original_context=8192,
        context=131072,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )


_YARN_OF_QWEN = RopeScaling("yarn", factor=4.0, original_context=32768)
KNOWN = (
    KnownModel(
        "Qwen 3",
        ("qwen3", "qwen3moe"),
        1e6,
        40960,
        NONE,
        "huggingface.co/Qwen/Qwen3-8B, Processing Long Texts",
        extension=_YARN_OF_QWEN,
    ),
    KnownModel(
        "Qwen 2.5",
        ("qwen2",),
        1e6,
        32768,
        NONE,
        "huggingface.co/Qwen/Qwen2.5-7B-Instruct, Processing Long Texts",
        extension=_YARN_OF_QWEN,
    ),
    KnownModel(
        "Llama 3.1 and 3.3",
        ("llama",),
        5e5,
        131072,
        _llama3(8.0),
        "huggingface.co/meta-llama/Llama-3.1-8B, config.json",
        widths=(4096, 8192, 16384),
    ),
    KnownModel(
        "Llama 3.2",
        ("llama",),
        5e5,
        131072,
        _llama3(32.0),
        "huggingface.co/meta-llama/Llama-3.2-1B, config.json",
        widths=(2048, 3072),
    ),
    KnownModel(
        "Llama 3",
        ("llama",),
        5e5,
        8192,
        NONE,
        "huggingface.co/meta-llama/Meta-Llama-3-8B, config.json",
    ),
    KnownModel(
        "gpt-oss",
        ("gpt-oss",),
        150000.0,
        131072,
        RopeScaling("yarn", factor=32.0, original_context=4096, truncate=False),
        "huggingface.co/openai/gpt-oss-20b, config.json",
    ),
    KnownModel(
        "DeepSeek 4",
        ("deepseek4",),
        1.6e5,
        1048576,
        RopeScaling("yarn", factor=16.0, original_context=65536, attention_factor=1.0),
        "huggingface.co/deepseek-ai/DeepSeek-V4-Flash, config.json",
    ),
    KnownModel(
        "Gemma 3 (4B and larger)",
        ("gemma3",),
        1e6,
        131072,
        RopeScaling("linear", factor=8.0, original_context=16384),
        "huggingface.co/google/gemma-3-4b-it, config.json",
    ),
    KnownModel(
        "Gemma 3 (270M and 1B)",
        ("gemma3",),
        1e6,
        32768,
        NONE,
        "huggingface.co/google/gemma-3-270m, config.json",
    ),
    KnownModel(
        "Olmo 3 32B",
        ("olmo2",),
        5e5,
        65536,
        RopeScaling("yarn", factor=8.0, original_context=8192),
        "huggingface.co/allenai/Olmo-3.1-32B-Instruct, config.json",
        widths=(5120,),
    ),
    KnownModel(
        "Phi-3 mini 4k",
        ("phi3",),
        1e4,
        4096,
        NONE,
        "huggingface.co/microsoft/Phi-3-mini-4k-instruct, config.json",
    ),
    KnownModel(
        "SmolLM2",
        ("llama",),
        1e5,
        8192,
        NONE,
        "huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, config.json",
    ),
)


def known_model(arch: str, keys: Mapping[str, Any]) -> KnownModel | None:
    """The row of a file, by its keys without the architecture's prefix. One whose context was
    extended is found too, where its original context is a row's; ``None`` for all others."""
    capability = CAPABILITIES.get(arch)
    base_key = "rope.freq_base" if capability is None else capability.base_key
    base = keys.get(base_key, 10000.0)
    width = keys.get("embedding_length")
    contexts = {
        keys.get("context_length"),
        keys.get("rope.scaling.original_context_length"),
    }
    for row in KNOWN:
        starts: set[Any] = {row.context}
        if row.extension is not None:
            starts.add(row.extension.original_context)
        fits = (
            arch in row.archs
            and starts & contexts
            and (not row.widths or width in row.widths)
        )
        if fits and isinstance(base, float) and abs(base / row.base - 1) <= 1e-6:
            return row
    return None


def extension_of(arch: str, base: float, context: int) -> KnownModel | None:
    """The row of an unextended model whose authors publish an extension; ``context`` in tokens."""
    for row in KNOWN:
        alike = arch in row.archs and context == row.context
        if alike and row.extension is not None and abs(base / row.base - 1) <= 1e-6:
            return row
    return None
