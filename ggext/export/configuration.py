"""``config.json`` from a GGUF file's keys, for the families whose files say all that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.config import Config
from ggext.converters import family_of
from ggext.errors import GgufError
from ggext.proof.reference import rope_parameters
from ggext.rope import methods
from ggext.rope.families import FULL, SLIDING

if TYPE_CHECKING:
    from ggext.convert.model_source import ModelSource
    from ggext.converters.base import Family

#: Architecture → model_type and class of transformers.
FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
#: GGUF key → config.json's, and whether it must be there.
_KEYS = {
    "block_count": ("num_hidden_layers", True),
    "embedding_length": ("hidden_size", True),
    "feed_forward_length": ("intermediate_size", True),
    "attention.head_count": ("num_attention_heads", True),
    "attention.head_count_kv": ("num_key_value_heads", False),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", True),
    "attention.sliding_window": ("sliding_window", False),
}
_SPECIAL = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
_GEMMA3_PERIOD = (
    6  # llama.cpp: the last of six layers attends to everything, if no key says so
)


def config_values(source: ModelSource, dtype: str) -> dict[str, Any]:
    """The content of ``config.json``. ``dtype``: of the weights, as torch calls it. Raises
    ``GgufError`` for a family that cannot be exported."""
    if source.arch not in FAMILIES:
        raise GgufError(
            f"{source.path} is of the architecture {source.arch}, whose files do not say all of a "
            f"config.json (those of {', '.join(FAMILIES)} do): give --original FOLDER, which "
            "has the original's"
        )
    keys = _arch_keys(source)
    names = {tensor.name for tensor in source.tensors}
    if any(name.endswith("_exps.weight") for name in names):
        raise GgufError(
            f"{source.path} has experts, of which a file does not say all of a config.json: give "
            "--original FOLDER, which has the original's"
        )
    model_type, class_name = FAMILIES[source.arch]
    values: dict[str, Any] = {"architectures": [class_name], "model_type": model_type}
    for key, (name, needed) in _KEYS.items():
        if key in keys:
            values[name] = keys[key]
        elif needed:
            raise GgufError(f"{source.path}: {source.arch}.{key} is missing")
    heads = values["num_attention_heads"]
    if not isinstance(heads, int) or not isinstance(
        values.get("num_key_value_heads", 1), int
    ):
        raise GgufError(
            f"{source.path}: layers with different numbers of heads are not exported"
        )
    values["head_dim"] = keys.get(
        "attention.key_length", values["hidden_size"] // heads
    )
    values["vocab_size"] = len(source.fields["tokenizer.ggml.tokens"].value)
    values["tie_word_embeddings"] = "output.weight" not in names
    values |= _of_family(source.arch, keys, names, values)
    values |= _rope(source)
    values |= _specials(source.fields)
    return values | {"dtype": dtype}


def family(values: dict[str, Any], source: ModelSource) -> Family:
    """The converter that would read such a checkpoint."""
    return family_of(Config(values, f"{source.path} as config.json"))


def _arch_keys(source: ModelSource) -> dict[str, Any]:
    prefix = source.arch + "."
    return {
        key.removeprefix(prefix): field.value
        for key, field in source.fields.items()
        if key.startswith(prefix)
    }


def _of_family(
    arch: str, keys: Mapping[str, Any], names: set[str], values: Mapping[str, Any]
) -> dict[str, Any]:
    biased = "blk.0.attn_q.bias" in names
    if arch == "gemma3":
        window = keys.get("attention.sliding_window_pattern")
        layers = range(values["num_hidden_layers"])
        slides = (
            [bool(window[i]) for i in layers]
            if isinstance(window, list)
            else [(i + 1) % (window or _GEMMA3_PERIOD) != 0 for i in layers]
        )
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": values["head_dim"],
            "layer_types": [SLIDING if slide else FULL for slide in slides],
            "attention_bias": biased,
        }
    flags = {} if arch == "qwen2" else {"attention_bias": biased}
    if arch == "llama":
        flags["mlp_bias"] = "blk.0.ffn_up.bias" in names
    return {"hidden_act": "silu"} | flags


def _rope(source: ModelSource) -> dict[str, Any]:
    """With the file's own scaling, in full."""
    if source.problem or source.scaling is None:
        why = source.problem or "it has frequency factors of an unknown method"
        raise GgufError(
            f"{source.path}: {why}; take the scaling out first: ggext convert {source.path} OUT "
            "--rope none --original-context N"
        )
    context = methods.extended_context(source.scaling, source.geometry)
    return {
        "max_position_embeddings": context,
        "rope_parameters": rope_parameters(source.scaling, source.geometry),
    }


def _specials(fields: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for key, name in _SPECIAL.items():
        field = fields.get(f"tokenizer.ggml.{key}")
        if field is not None:
            result[name] = field.value
    return result
