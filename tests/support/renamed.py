"""Checkpoints of families that transformers does not know, made of those that it knows: the same
model under other names, so that what the original computes is what must come out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

#: Family → transformers' model_type of which its own code is a copy.
RENAMED = {"exaone": "llama", "internlm2": "llama"}

_EXAONE = (
    (r"^model\.embed_tokens\.", "transformer.wte."),
    (r"^model\.norm\.", "transformer.ln_f."),
    (r"^model\.layers\.", "transformer.h."),
    (r"\.input_layernorm\.", ".ln_1."),
    (r"\.post_attention_layernorm\.", ".ln_2."),
    (r"\.self_attn\.o_proj\.", ".attn.attention.out_proj."),
    (r"\.self_attn\.", ".attn.attention."),
    (r"\.gate_proj\.", ".c_fc_0."),
    (r"\.up_proj\.", ".c_fc_1."),
    (r"\.down_proj\.", ".c_proj."),
)
_INTERNLM2 = (
    (r"^model\.embed_tokens\.", "model.tok_embeddings."),
    (r"^lm_head\.", "output."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.o_proj\.", ".attention.wo."),
    (r"\.mlp\.gate_proj\.", ".feed_forward.w1."),
    (r"\.mlp\.up_proj\.", ".feed_forward.w3."),
    (r"\.mlp\.down_proj\.", ".feed_forward.w2."),
)


def rename(original: Path, folder: Path, family: str) -> Path:
    """The checkpoint in ``original`` as one of ``family``, in ``folder``."""
    from safetensors.numpy import load_file, save_file
    from transformers import AutoConfig

    folder.mkdir(parents=True)
    config = json.loads(
        AutoConfig.from_pretrained(original).to_json_string(use_diff=False)
    )
    tensors = load_file(original / "model.safetensors")
    config, tensors = {"exaone": _exaone, "internlm2": _internlm2}[family](
        config, tensors
    )
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": family}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(original / name, folder / name)
    return folder


def _renamed(
    tensors: dict[str, Any], names: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    result = {}
    for name, values in tensors.items():
        for pattern, written in names:
            name = re.sub(pattern, written, name)
        result[name] = values
    return result


def _older(config: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters as remote code of transformers 4 has them."""
    parameters = config.pop("rope_parameters")
    scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
    config["rope_theta"] = parameters["rope_theta"]
    config["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    return config


def _exaone(config: dict[str, Any], tensors: dict[str, Any]) -> tuple[Any, Any]:
    config = _older(config) | {"architectures": ["ExaoneForCausalLM"]}
    for theirs, own in (
        ("num_hidden_layers", "num_layers"),
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation_function"),
    ):
        config[own] = config.pop(theirs)
    return config, _renamed(tensors, _EXAONE)


def _internlm2(config: dict[str, Any], tensors: dict[str, Any]) -> tuple[Any, Any]:
    import numpy as np

    size = config["head_dim"]
    groups = config["num_key_value_heads"]
    for i in range(config["num_hidden_layers"]):
        module = f"model.layers.{i}.self_attn"
        parts = [
            tensors.pop(f"{module}.{name}_proj.weight").reshape(
                groups, -1, size, config["hidden_size"]
            )
            for name in "qkv"
        ]
        fused = np.concatenate(parts, axis=1).reshape(-1, config["hidden_size"])
        tensors[f"model.layers.{i}.attention.wqkv.weight"] = fused
    config = _older(config) | {"architectures": ["InternLM2ForCausalLM"], "bias": False}
    return config, _renamed(tensors, _INTERNLM2)
