"""Configurations whose layers are of several kinds: converted exactly, or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layered import bake

from ggext.errors import CheckpointError, GgextError
from ggext.gguf.open import read_gguf
from ggext.rope.decode import layer_kinds
from ggext.verify import verify

# files

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")


def edited(source: Path, folder: Path, change: dict[str, Any]) -> Path:
    """A copy of a checkpoint whose config.json says something else."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    return folder


def test_kimi_k2_is_right_in_our_contexts(models: Path, tmp_path: Path) -> None:
    """Betas on an architecture that reads none: auto chooses runtime, and says what other programs
    make of it."""
    own = {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 1e4,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
    }
    change = {
        "model_type": "kimi_k2",
        "rope_parameters": own,
        "max_position_embeddings": 2048,
    }
    checkpoint = edited(models / "deepseek_v3", tmp_path / "kimi", change)
    plan = bake(checkpoint, tmp_path / "out.gguf", None)
    assert plan.encoding is not None
    assert plan.encoding.name == "runtime"
    assert plan.encoding.exactness.is_exact
    assert plan.encoding.elsewhere is not None
    assert plan.encoding.elsewhere.frequency_error > 0.1
    report = verify(tmp_path / "out.gguf", levels=["table", "graph"])
    assert report.passed, report.checks
    assert any("other llama.cpp programs" in note for note in report.notes)


def test_a_model_that_sees_too(models: Path, tmp_path: Path) -> None:
    """What concerns text is converted; the names have a prefix, and the configuration is nested."""
    from safetensors.numpy import load_file, save_file

    checkpoint = edited(models / "gemma3", tmp_path / "seeing", {})
    text = json.loads((checkpoint / "config.json").read_text())
    outer = {
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"hidden_size": 8},
    }
    (checkpoint / "config.json").write_text(json.dumps(outer))
    tensors = load_file(checkpoint / "model.safetensors")
    prefixed = {
        name.replace("model.", "model.language_model.", 1): array
        for name, array in tensors.items()
    }
    save_file(
        prefixed | {"model.vision_tower.x": np.zeros(3, "<f4")},
        checkpoint / "model.safetensors",
    )
    plan = bake(checkpoint, tmp_path / "seeing.gguf")
    assert any(
        "1 tensors are not part of this architecture" in note for note in plan.notes
    )
    bake(models / "gemma3", tmp_path / "text.gguf")
    one, other = read_gguf(tmp_path / "seeing.gguf"), read_gguf(tmp_path / "text.gguf")
    assert {n: bytes(one.tensor_data(n)) for n in one.tensors} == {
        n: bytes(other.tensor_data(n)) for n in other.tensors
    }
    assert one.arch_keys() == other.arch_keys()


def test_a_range_that_llama_cpp_rounds_is_told(models: Path, tmp_path: Path) -> None:
    """gpt-oss's own YaRN: convert prints the error, verify fails and says why."""
    from ggext.cli.convert_report import describe

    own = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 150000.0,
    }
    change = {
        "rope_parameters": own | {"truncate": False},
        "max_position_embeddings": 256,
    }
    plan = bake(
        edited(models / "gpt_oss", tmp_path / "own", change),
        tmp_path / "out.gguf",
        None,
    )
    assert plan.encoding is not None
    assert not plan.encoding.exactness.is_exact
    assert any("not exact" in line for line in describe(plan))
    report = verify(tmp_path / "out.gguf", levels=["table", "graph"])
    assert not report.passed
    assert any("llama.cpp always rounds it" in check.why for check in report.checks)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "gemma2",
            {"query_pre_attn_scalar": 64},
            "query_pre_attn_scalar is 64; .* divides the scores by √32",
        ),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
        (
            "gemma2",
            {"tie_word_embeddings": False},
            "has no output matrix but the embedding",
        ),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "does not cap the scores"),
        ("gemma3", {"use_bidirectional_attention": True}, "attends to what was before"),
        (
            "gemma3",
            {"layer_types": [{}] * 7},
            "layer_types must name .* for each of 7 layers",
        ),
        (
            "gemma3",
            {"layer_types": ["full_attention"]},
            "layer_types must name .* for each of 7 layers",
        ),
        ("exaone4", {"sliding_window": None}, "sliding_window is None in 64 layers"),
        (
            "exaone4",
            {"layer_types": None, "sliding_window_pattern": "LGLG"},
            "sliding_window_pattern 'LGLG'",
        ),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ("deepseek_v3", {"rope_interleave": False}, "rotates neighbours"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        (
            "deepseek_v3",
            {"moe_layer_freq": 2},
            "has experts in every layer after the first ones",
        ),
        (
            "deepseek_v3",
            {"num_hidden_layers": 27},
            "takes such a model for one without it",
        ),
        (
            "deepseek_v3",
            {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"},
            "groups of experts",
        ),
        (
            "deepseek_v3",
            {"model_type": "deepseek_v2", "topk_method": "greedy"},
            "norm_topk_prob is True",
        ),
        ("gpt_oss", {"attention_bias": False}, "has biases"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    models: Path, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    checkpoint = edited(models / name, tmp_path / "model", change)
    with pytest.raises(GgextError, match=message) as caught:
        bake(checkpoint, tmp_path / "out.gguf")
    assert isinstance(caught.value, CheckpointError)


def test_the_short_form_of_a_pattern(models: Path, tmp_path: Path) -> None:
    checkpoint = edited(
        models / "exaone4",
        tmp_path / "m",
        {"layer_types": None, "sliding_window_pattern": "LLLG"},
    )
    bake(checkpoint, tmp_path / "out.gguf")
    assert layer_kinds(read_gguf(tmp_path / "out.gguf").arch_keys(), "exaone4")[:5] == (
        "scaled",
        "scaled",
        "scaled",
        "unrotated",
        "scaled",
    )


def test_the_gain_of_the_graph_is_the_attention_factor(
    models: Path, tmp_path: Path
) -> None:
    """deepseek2 with a gain of its own: the kernel applies it to the rotated part alone."""
    bake(models / "deepseek_v3", tmp_path / "out.gguf")
    report = verify(
        tmp_path / "out.gguf",
        models / "deepseek_v3",
        levels=["table", "graph", "logits"],
    )
    assert report.passed, report.checks
    gain = next(
        check
        for check in report.checks
        if check.quantity == "gain executed, relative error"
    )
    assert f"{1 + 0.1 * math.log(4):.7g}" in gain.detail
