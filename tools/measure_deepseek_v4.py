"""DeepSeek 4 in llama.cpp against transformers: a tiny random model through llama.cpp's own
converter, its experts in float32 so that no activation is quantized.

    python tools/measure_deepseek_v4.py --llama-cpp PATH

PATH is a checkout of llama.cpp. Printed is the mean KL divergence in nats over the tokens, 64 by 64.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ggext.gguf.open import read_gguf
from ggext.gguf.types import F32, MXFP4
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.proof.reference import divergence, judge_class

_TOKENS = 400
_KINDS = {"sliding_attention": 0, "compressed_sparse_attention": 4}
_KINDS["heavily_compressed_attention"] = 128
_SLIDES, _CHOSEN, _HEAVY = _KINDS
_SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 64,
    "num_key_value_heads": 1,
    "q_lora_rank": 64,
    "partial_rotary_factor": 0.25,
    "o_groups": 2,
    "o_lora_rank": 32,
    "index_n_heads": 16,
    "index_head_dim": 64,
    "sliding_window": 128,
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "intermediate_size": None,
    "max_position_embeddings": 1024,
}
#: What transformers calls a tensor, a part of its name → what upstream's converter asks for.
_NAMES = {
    "model.": "",
    "embed_tokens": "embed",
    "hc_head.hc_": "hc_head_",
    "attn.norm.weight": "attn.kv_norm.weight",
}
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], "<f4")


def published(checkpoint: Path, out: Path, kinds: list[str]) -> None:
    """Gives the model experts of MXFP4 values, and writes it to ``out`` as checkpoints have it."""
    from safetensors.numpy import load_file, save_file

    path, random = checkpoint / "model.safetensors", np.random.default_rng(0)
    ours, theirs = load_file(path), {}
    for name, values in list(ours.items()):
        renamed = name
        for part, other in _NAMES.items():
            renamed = renamed.replace(part, other)
        if ".experts." in name:
            rows, columns = values.shape
            codes = random.integers(0, 16, (rows, columns), np.uint8)
            exponents = random.integers(122, 125, (rows, columns // 32), np.uint8)
            scales = np.exp2(exponents.astype("<f4") - 127)
            ours[name] = _FP4[codes] * scales.repeat(32, axis=1)
            theirs[renamed] = codes[:, ::2] | codes[:, 1::2] << 4
            theirs[renamed.replace(".weight", ".scale")] = exponents
            continue
        if any(part in name for part in ("attn_sink", "hc_", ".ape", "gate.bias")):
            ours[name] = random.normal(0, 0.5, values.shape).astype("<f4")
        theirs[renamed] = ours[name]
    save_file(ours, path, {"format": "pt"})
    shutil.copytree(checkpoint, out)
    save_file(theirs, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config |= {
        "compress_ratios": [_KINDS[kind] for kind in kinds],
        "num_hash_layers": 1,
    }
    (out / "config.json").write_text(json.dumps(config))


def in_float32(source: Path, out: Path) -> None:
    """The file with its MXFP4 tensors as the values that they stand for."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    gguf, tensors = read_gguf(source), []
    for name, info in gguf.tensors.items():
        data, kind = bytes(gguf.tensor_data(name)), info.type
        if kind == MXFP4:
            packed = np.frombuffer(data, np.uint8).reshape(-1, info.shape[0] // 32 * 17)
            values = dequantize(packed, GGMLQuantizationType.MXFP4)
            data, kind = values.astype("<f4").tobytes(), F32
        tensors.append(
            TensorToWrite(name, info.shape, kind, len(data), lambda data=data: [data])  # type: ignore[misc]
        )
    write_gguf(out, dict(gguf.fields), tensors)


def measured(llama_cpp: Path, kinds: list[str], chosen: int) -> list[float]:
    import torch
    from compare_with_upstream import run_upstream
    from tiny import make_model
    from transformers import AutoConfig

    from ggext.runtime.engine import Model, Session, SessionOptions

    with tempfile.TemporaryDirectory() as folder:
        own = {"layer_types": kinds, "index_topk": chosen}
        checkpoint = make_model(Path(folder, "model"), "deepseek_v4", **_SIZES | own)
        published(checkpoint, Path(folder, "published"), kinds)
        config = AutoConfig.from_pretrained(checkpoint)
        model = judge_class(config).from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        ids = [2 + (7919 * i + 13) % 300 for i in range(_TOKENS)]
        with torch.inference_mode():
            wanted = (
                model.eval()(torch.tensor([ids]), use_cache=False).logits[0].numpy()
            )
        files = [Path(folder, f"{name}.gguf") for name in ("upstream", "float32")]
        run_upstream(llama_cpp, Path(folder, "published"), files[0], "gpt-2")
        in_float32(*files)
        options = SessionOptions(1024, 1, kv_type="f32", flash_attention=False)
        with Model.open(files[1], 0) as opened, Session(opened, options) as session:
            kl, _ = divergence(wanted, session.logits(ids))
    return [float(kl[i : i + 64].mean()) for i in range(0, _TOKENS, 64)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    for kinds in (
        [_SLIDES, _SLIDES, _CHOSEN, _HEAVY],
        [_SLIDES, _CHOSEN, _HEAVY, _CHOSEN],
    ):
        for chosen in (512, 16):
            found = measured(options.llama_cpp, kinds, chosen)
            print(", ".join(kinds), f"top {chosen}:", *(f"{kl:.1e}" for kl in found))


if __name__ == "__main__":
    main()
