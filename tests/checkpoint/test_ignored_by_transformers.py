"""Checkpoints that say or hold more than transformers reads, or in other forms: converted as it reads
them, with a note."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from family_rows import EXPERTS
from ggext.converters import known_families
from tiny import make_model

from ggext.convert import ConvertOptions, convert, plan
from ggext.gguf.open import read_gguf

pytest.importorskip("transformers")


@pytest.mark.parametrize("model_type", ["llama", "olmo2"])
def test_a_bias_that_the_configuration_does_not_have(
    model_type: str, tmp_path: Path
) -> None:
    """transformers leaves it out, also where llama.cpp would not add it; it was refused."""
    checkpoint = make_model(tmp_path / "model", model_type, attention_bias=True)
    path = checkpoint / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"attention_bias": False})
    )
    planned = plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))
    notes = " ".join(planned.notes)
    assert "q_proj.bias and 7 more are left out: attention_bias is not true" in notes
    assert not [
        tensor.name for tensor in planned.tensors if tensor.name.endswith(".bias")
    ]


def test_a_bias_of_zeros_that_llama_cpp_does_not_add(tmp_path: Path) -> None:
    """It adds nothing in transformers either."""
    from safetensors.numpy import load_file, save_file

    checkpoint = make_model(tmp_path / "model", "olmo2", attention_bias=True)
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    save_file(
        {name: t * 0 if name.endswith(".bias") else t for name, t in tensors.items()},
        weights,
        {"format": "pt"},
    )
    planned = plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))
    assert "2 tensors are not part of this architecture" in " ".join(planned.notes)


def test_experts_of_several_dtypes(tmp_path: Path) -> None:
    """transformers takes them into one; they were refused. The values stay as they are."""
    from safetensors.numpy import load_file, save_file

    checkpoint = make_model(
        tmp_path / "model", "qwen3_moe", **EXPERTS, norm_topk_prob=True
    )
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    tensors[name.format(1)] = tensors[name.format(1)].astype("<f2")
    save_file(tensors, weights, {"format": "pt"})
    out = tmp_path / "out.gguf"
    planned = convert(ConvertOptions(checkpoint, out))
    assert (
        "blk.0.ffn_up_exps.weight is of several dtypes in the checkpoint (F16, F32)"
        in " ".join(planned.notes)
    )
    gguf = read_gguf(out)
    info = gguf.tensors["blk.0.ffn_up_exps.weight"]
    start = gguf.data_offset + info.offset
    written = np.fromfile(out, "<f4", info.nbytes // 4, offset=start).reshape(
        *info.shape[::-1]
    )
    for number, values in enumerate(written):
        assert (values == tensors[name.format(number)].astype("<f4")).all()


def test_a_text_config_beside_a_model_of_text_alone(tmp_path: Path) -> None:
    """transformers does not read it; it was taken for the model's own."""
    checkpoint = make_model(tmp_path / "model", "llama")
    expected = plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))
    path = checkpoint / "config.json"
    stray = {
        "num_hidden_layers": 1,
        "rope_theta": 5.0,
        "hidden_size": 8,
        "eos_token_id": 3,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_config": stray}))
    planned = plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))
    assert "has a text_config, which transformers does not read" in " ".join(
        planned.notes
    )
    assert planned.completed() == expected.completed()
    assert planned.geometry == expected.geometry


def test_which_models_have_a_part_for_text() -> None:
    """As transformers' classes say."""
    from ggext.rope.families import text_part

    mapping = pytest.importorskip("transformers").CONFIG_MAPPING
    sizes = {"num_attention_heads": 4, "text_config": {"num_attention_heads": 4}}
    for model_type in set(known_families()) & set(mapping.keys()):
        composite = "text_config" in mapping[model_type].sub_configs
        assert (
            text_part({"model_type": model_type, **sizes}) is not None
        ) == composite, model_type
