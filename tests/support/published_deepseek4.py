"""A checkpoint of DeepSeek 4 as it is published: experts in MXFP4, other matrices in float8, both
with exponents of two as their scales, under the names that its own code has."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

_EXPERT = re.compile(r"\.experts\.\d+\.w[123]\.weight$")
_FLOAT8 = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "w1", "w2", "w3")
_QUANTIZED: dict[str, Any] = {
    "dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}
_RATIOS = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}
#: What transformers saves in place of the published keys.
_OF_TRANSFORMERS = (
    "layer_types mlp_layer_types compress_rates rope_parameters partial_rotary_factor"
).split()


def published_name(name: str) -> str:
    """Of a tensor that transformers saved."""
    name = name.removeprefix("model.").replace("embed_tokens", "embed")
    name = name.replace("hc_head.hc_", "hc_head_")
    return name.replace(".attn.norm.", ".attn.kv_norm.")


def published_config(saved: dict[str, Any]) -> dict[str, Any]:
    """Of what transformers saved, the keys that the model's own code reads."""
    scaling = dict(saved["rope_parameters"]["compress"])
    theta = scaling.pop("rope_theta")
    for key in ("partial_rotary_factor", "attention_factor"):
        scaling.pop(key, None)
    scaling["type"] = scaling.pop("rope_type")
    kept = {key: saved[key] for key in saved if key not in _OF_TRANSFORMERS}
    return kept | {
        # one more, of the layer that predicts further tokens
        "compress_ratios": [*(_RATIOS[kind] for kind in saved["layer_types"]), 0],
        "num_hash_layers": saved["mlp_layer_types"].count("hash_moe"),
        "compress_rope_theta": theta,
        "rope_scaling": scaling if scaling["type"] != "default" else None,
        "expert_dtype": "fp4",
    }


def publish(plain: Path, folder: Path, *, float8: bool = True) -> Path:
    """Random weights of those types in a copy of a checkpoint that transformers saved. ``float8``:
    in place of float32."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(plain, folder)
    generator = torch.Generator().manual_seed(0)

    def drawn(low: int, high: int, *shape: int) -> Any:
        values = torch.randint(low, high, shape, generator=generator)
        return values.to(torch.uint8)

    tensors = {}
    for saved, values in load_file(plain / "model.safetensors").items():
        name = published_name(saved)
        module = name.removesuffix(".weight").rpartition(".")[2]
        scale = f"{name.removesuffix('weight')}scale"
        exponents = torch.float8_e8m0fnu
        if _EXPERT.search(name):
            rows, columns = values.shape
            tensors[name] = drawn(0, 256, rows, columns // 2).view(torch.int8)
            tensors[scale] = drawn(120, 124, rows, columns // 32).view(exponents)
        elif not float8:
            tensors[name] = values
        elif module in _FLOAT8 and ".compressor." not in name:
            rows, columns = values.shape
            tensors[name] = (values * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
            blocks = (-(-rows // 128), -(-columns // 128))
            tensors[scale] = drawn(118, 123, *blocks).view(exponents)
        elif values.dim() > 1 and values.is_floating_point() and "hc_" not in name:
            tensors[name] = values.to(torch.bfloat16)
        else:
            tensors[name] = values
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    config = published_config(json.loads(path.read_text()))
    path.write_text(json.dumps(config | (_QUANTIZED if float8 else {})))
    return folder
