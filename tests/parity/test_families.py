"""Each family: a tiny random model of its shape, converted, and its logits in llama.cpp against transformers'."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

YARN_4 = RopeScaling("yarn", factor=4)


@dataclass(frozen=True)
class Row:
    """``config``: what is not as in ``tiny.make_model``. ``rope``: baked over the checkpoint's own, ``None`` for the
    checkpoint's own. ``bound``: on the mean KL in nats; what it is where it is not 1e-6 stands in the family's file."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    rope: RopeScaling | None = YARN_4
    bound: float = 1e-6


_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def _own(kind: str, **parameters: Any) -> dict[str, Any]:
    """The checkpoint's own scaling, from 64 tokens to 256."""
    own = {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": 64} | parameters
    return {"rope_parameters": own, "max_position_embeddings": 256}


ROWS = {
    "apertus": Row("apertus", _own("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0), rope=None),
    "arcee": Row("arcee", {"head_dim": 48}),
    "cohere2": Row("cohere2", {"num_hidden_layers": 5, "sliding_window": 32, "tie_word_embeddings": True,
                   "logit_scale": 0.5}),
    "ernie4_5": Row("ernie4_5", {"head_dim": 48, "tie_word_embeddings": True}),
    "falcon": Row("falcon", {"hidden_size": 128, "num_kv_heads": None, "alibi": False}),
    "falcon-40b": Row("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": Row("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-many-kv": Row("falcon", {"multi_query": False, "ffn_hidden_size": 160}),
    "glm4": Row("glm4", {"head_dim": 48}),
    "gpt_neox": Row("gpt_neox"),
    "gpt_neox-serial": Row("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_fast"}),
    "granite": Row("granite", {"embedding_multiplier": 12.0, "attention_multiplier": 0.0625,
                   "residual_multiplier": 0.8, "logits_scaling": 0.5, "tie_word_embeddings": True}),
    "granite-biases": Row("granite", {"attention_bias": True, "mlp_bias": True}),
    "hunyuan_v1_dense": Row("hunyuan_v1_dense", {"head_dim": 32}),
    "internlm3": Row("internlm3", {"head_dim": 48, "attention_bias": True, "mlp_bias": True}),
    "lfm2": Row("lfm2", {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}),
    "llama": Row("llama"),
    "minicpm3": Row("minicpm3", {"num_key_value_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 32,
                    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24, "tie_word_embeddings": True}),
    "mistral": Row("mistral", {"sliding_window": None}),
    "mixtral": Row("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "nemotron": Row("nemotron"),
    "nemotron-biases": Row("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "olmo2": Row("olmo2"),
    "olmo2-tied": Row("olmo2", {"tie_word_embeddings": True}),
    "phi": Row("phi"),
    "qwen2": Row("qwen2"),
    "qwen2_moe": Row("qwen2_moe", _EXPERTS | {"shared_expert_intermediate_size": 96}),
    "qwen3": Row("qwen3", {"head_dim": 24}),
    "qwen3_moe": Row("qwen3_moe", _EXPERTS | {"norm_topk_prob": True}),
    "seed_oss": Row("seed_oss", {"head_dim": 48}),
    "smollm3": Row("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "stablelm": Row("stablelm", {"use_qkv_bias": True}),
    "stablelm-12b": Row("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": Row("starcoder2", {"tie_word_embeddings": True}),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_logits_equal_transformers(row: Row, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    out = tmp_path / "out.gguf"
    convert(ConvertOptions(checkpoint, out, row.rope))
    report = verify(out, checkpoint)
    logits = {check.quantity: check.value for check in report.checks if check.level == "logits"}
    assert len(logits) == 2, "in the window and beyond it"
    assert max(logits.values()) <= row.bound, logits
    assert report.passed, report


def test_layers_that_do_not_rotate_make_a_shift_wrong(tmp_path: Path) -> None:
    """llama.cpp 0c1e57098 turns all layers' cached keys in a shift, SmolLM 3's fourth too."""
    checkpoint = make_model(tmp_path / "model", "smollm3", num_hidden_layers=4)
    out = tmp_path / "out.gguf"
    convert(ConvertOptions(checkpoint, out, RopeScaling("linear", factor=4)))
    report = verify(out, levels=["shift"])
    assert report.shift_safe is False
    assert all(row.k_norm == pytest.approx(1, abs=1e-6) for row in report.shifts)
    assert "those that do not rotate" in report.checks[0].why
    convert(ConvertOptions(make_model(tmp_path / "three", "smollm3", num_hidden_layers=3), out, force=True))
    assert verify(out, levels=["shift"]).shift_safe
