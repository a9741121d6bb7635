"""The names of tensors in memory and in files, of text parts and of base models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import change_config, converted, load
from family_rows import ROWS
from tiny import make_model, small_config, write_tokenizer

from ggext.errors import CheckpointError
from ggext.gguf.open import read_gguf

pytest.importorskip("transformers")
numpy_files = pytest.importorskip("safetensors.numpy")


#: Every mixture of experts, and what else transformers 5 calls otherwise than the checkpoints.
_SAVED = sorted(
    {
        "deepseek_v2",
        "deepseek_v3",
        "dots1",
        "ernie4_5_moe",
        "glm4_moe",
        "glm4_moe_lite",
        "gpt_neox",
        "gpt_oss",
        "hy_v3",
        "granitemoe",
        "granitemoeshared",
        "lfm2_moe",
        "llama4_text",
        "minimax_m2",
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
    }
)


@pytest.mark.parametrize("model_type", _SAVED)
def test_names_that_transformers_has_in_memory(model_type: str, tmp_path: Path) -> None:
    """What ``save_pretrained(save_original_format=False)`` writes: fused experts, other names."""
    from transformers import AutoModelForCausalLM

    row = next(row for row in ROWS.values() if row.model_type == model_type)
    model = AutoModelForCausalLM.from_config(small_config(model_type, **row.config))
    made = []
    for name, as_published in (("published", True), ("memory", False)):
        folder = tmp_path / name
        model.save_pretrained(folder, save_original_format=as_published)
        write_tokenizer(folder)
        made.append(
            (set(load(folder)), converted(folder, tmp_path / f"{name}.gguf")[0])
        )
    (published, first), (memory, second) = made
    assert published != memory or model_type in ("llama4_text", "gpt_oss")
    assert first == second


def test_minimax_m3_as_it_is_published(tmp_path: Path) -> None:
    """Keys that transformers reads and does not save."""
    row = ROWS["minimax_m3_vl-dense"]
    saved = make_model(tmp_path / "saved", row.model_type, **row.config)
    published = tmp_path / "published"
    shutil.copytree(saved, published)
    config = json.loads((saved / "config.json").read_text())
    text = config["text_config"]
    of_blocks = {
        "use_sparse_attention": True,
        "sparse_num_index_heads": text.pop("index_n_heads"),
        "sparse_index_dim": text.pop("index_head_dim"),
        "sparse_block_size": text.pop("index_block_size"),
        "sparse_topk_blocks": text.pop("index_topk_blocks"),
        "sparse_local_block": text.pop("index_local_blocks"),
        "sparse_init_block": 0,
        "sparse_score_type": "max",
        "sparse_attention_freq": [0, 1, 1],
    }
    del text["layer_types"], text["mlp_layer_types"]
    text |= {
        "sparse_attention_config": of_blocks,
        "moe_layer_freq": [0, 1, 1],
        "rotary_dim": 16,
        "partial_rotary_factor": 0.5,
        "hidden_act": "swigluoai",
        "scoring_func": "sigmoid",
        "use_gemma_norm": True,
    }
    (published / "config.json").write_text(json.dumps(config))
    names = set(load(saved))
    assert "language_model.model.layers.1.self_attn.index_q_proj.weight" in names
    files = [tmp_path / "published.gguf", tmp_path / "saved.gguf"]
    tensors = [
        converted(folder, out)[0]
        for folder, out in zip((published, saved), files, strict=True)
    ]
    assert tensors[0] == tensors[1]
    assert read_gguf(files[0]).arch_keys() == read_gguf(files[1]).arch_keys()
    config["text_config"]["sparse_attention_config"]["sparse_init_block"] = 1
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="sparse_init_block is 1"):
        converted(published, tmp_path / "other.gguf")


@pytest.mark.parametrize(
    "model_type", ["cohere2", "gemma3_text", "qwen3", "starcoder2"]
)
def test_a_base_model_that_transformers_saved(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    row = next(row for row in ROWS.values() if row.model_type == model_type)
    config = small_config(model_type, **row.config | {"tie_word_embeddings": True})
    model = AutoModelForCausalLM.from_config(config)
    for name, saved in (("whole", model), ("base", model.base_model)):
        saved.save_pretrained(tmp_path / name)
        write_tokenizer(tmp_path / name)
    whole, _ = converted(tmp_path / "whole", tmp_path / "whole.gguf")
    base, notes = converted(tmp_path / "base", tmp_path / "base.gguf")
    assert base == whole
    assert "whose names lack model." in notes


# models that see too ------------------------------------------------------------------------------

_VISION = {
    "mistral3": {
        "model_type": "pixtral",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 32,
        "image_size": 28,
        "patch_size": 14,
    },
    "gemma3": {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
}
_TEXT = {
    "mistral3": {"model_type": "mistral", "head_dim": 32},
    "gemma3": ROWS["gemma3_text"].config,
}


for _name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
    _TEXT[_name] = dict(ROWS[_name].config)
    _VISION[_name] = _TEXT[_name].pop("vision_config")


@pytest.mark.parametrize("model_type", _TEXT)
@pytest.mark.parametrize("top", [None, True, False])
@pytest.mark.parametrize("inner", [None, True, False])
def test_the_whole_models_tie_counts(
    model_type: str, top: bool | None, inner: bool | None, tmp_path: Path
) -> None:
    """As in transformers, whose class of the whole model has the output matrix; what text_config
    says of it is not read."""
    from tiny import SIZES
    from transformers import AutoConfig, AutoModelForImageTextToText

    sizes = SIZES | _TEXT[model_type]
    ties = {"tie_word_embeddings": inner}
    text = {k: v for k, v in (sizes | ties).items() if v is not None}
    tops = {} if top is None else {"tie_word_embeddings": top}
    config = AutoConfig.for_model(
        model_type, text_config=text, vision_config=_VISION[model_type], **tops
    )
    model = AutoModelForImageTextToText.from_config(config)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    write_tokenizer(folder)
    data, _ = converted(folder, tmp_path / "x.gguf")
    assert ("output.weight" in data) == (not config.tie_word_embeddings)


def test_the_names_of_a_text_part_in_every_layout() -> None:
    """That of the published files, those of transformers 4 and 5, and that of 5.10, which doubled
    a prefix."""
    from ggext.converters.base import text_part_name

    for name in ("layers.0.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight"):
        for prefix in (
            "language_model.model.",
            "model.language_model.",
            "model.language_model.model.",
            "language_model.",
            "model.",
        ):
            assert text_part_name(prefix + name) == f"model.{name}"
    for prefix in ("language_model.", "", "model.language_model."):
        assert text_part_name(f"{prefix}lm_head.weight") == "lm_head.weight"


# quantized ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq"},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "mxfp4"},
        {"bits": 4, "group_size": 64},
    ],
)
def test_plain_floats_are_believed(
    copy: Path, tmp_path: Path, stated: dict[str, Any]
) -> None:
    plain, _ = converted(copy, tmp_path / "a.gguf")
    change_config(copy, quantization_config=stated)
    same, notes = converted(copy, tmp_path / "b.gguf")
    assert same == plain
    assert "every tensor is a plain float: the tensors are believed" in notes
