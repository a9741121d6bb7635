"""Rows that a converter multiplies by a constant: in the file, and in an adapter for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from family_rows import ROWS
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.gguf.open import read_gguf
from ggext.gguf.types import BF16
from ggext.rope.scaling import RopeScaling

pytest.importorskip("transformers")


def test_the_type_stays_and_the_product_is_rounded_once(tmp_path: Path) -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quantize
    from safetensors.torch import load_file

    folder = make_model(
        tmp_path / "model", "falcon_h1", dtype="bfloat16", **ROWS["falcon_h1"].config
    )
    convert(ConvertOptions(folder, tmp_path / "model.gguf"))
    gguf = read_gguf(tmp_path / "model.gguf")
    stored = load_file(folder / "model.safetensors")
    for name, source, times in (
        ("token_embd.weight", "model.embed_tokens.weight", 3.0),
        ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj.weight", 0.7 * 1.3),
        ("blk.0.ffn_down.weight", "model.layers.0.feed_forward.down_proj.weight", 0.4),
    ):
        assert gguf.tensors[name].type == BF16
        bits = np.frombuffer(gguf.tensor_data(name), np.uint8).reshape(
            stored[source].shape[0], -1
        )
        product = stored[source].double().numpy() * times
        wanted = quantize(product.astype("<f4"), GGMLQuantizationType.BF16)
        assert (bits == wanted).all()
        assert (dequantize(bits, GGMLQuantizationType.BF16) != 0).any()


@pytest.mark.parametrize("encoding", ["keys", "folded"])
def test_an_adapter_is_multiplied_too(tmp_path: Path, encoding: str) -> None:
    """On the file of its base it does what its sum does in a file."""
    pytest.importorskip("llama_cpp")
    from safetensors.numpy import load_file, save_file

    from ggext.proof.reference import divergence
    from ggext.runtime.engine import Model, Session, SessionOptions
    from ggext.tune.adapter import write_adapter

    base = make_model(tmp_path / "base", "falcon_h1", **ROWS["falcon_h1"].config)
    random, factors, weights = (
        np.random.default_rng(0),
        {},
        load_file(base / "model.safetensors"),
    )
    for module in ("self_attn.q_proj", "self_attn.k_proj", "mamba.in_proj"):
        name = f"model.layers.0.{module}"
        rows, columns = weights[f"{name}.weight"].shape
        a, b = (
            random.normal(0, 0.2, shape).astype("<f4")
            for shape in ((4, columns), (rows, 4))
        )
        factors[f"base_model.model.{name}.lora_A.weight"] = a
        factors[f"base_model.model.{name}.lora_B.weight"] = b
        weights[f"{name}.weight"] += b @ a
    merged, peft = tmp_path / "merged", tmp_path / "peft"
    make_model(merged, "falcon_h1", **ROWS["falcon_h1"].config)
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    peft.mkdir()
    save_file(factors, peft / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "bias": "none"}
    (peft / "adapter_config.json").write_text(json.dumps(settings))
    for folder in (base, merged):
        options = ConvertOptions(
            folder,
            folder.with_suffix(".gguf"),
            RopeScaling("yarn", factor=4),
            encoding=encoding,  # type: ignore[arg-type]
        )
        convert(options)
    write_adapter(peft, base, tmp_path / "base.gguf", tmp_path / "adapter.gguf")

    def logits(name: str, adapter: Path | None = None) -> np.ndarray:
        options = SessionOptions(
            128, 1, kv_type="f32", flash_attention=False, adapter=adapter
        )
        with (
            Model.open(tmp_path / name, 0) as model,
            Session(model, options) as session,
        ):
            return session.logits(list(range(5, 100)))

    expected = logits("merged.gguf")
    found = logits("base.gguf", tmp_path / "adapter.gguf")
    assert divergence(expected, found)[0].mean() <= 1e-6
    assert divergence(expected, logits("base.gguf"))[0].mean() > 1e-3
