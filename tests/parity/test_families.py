"""Each family: a tiny random model of its shape, converted, and its logits in llama.cpp against transformers'."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from ggext.convert import ConvertOptions, convert, plan
from ggext.errors import CheckpointError
from ggext.inspect import inspect
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

YARN_4 = RopeScaling("yarn", factor=4)


@dataclass(frozen=True)
class Row:
    """``config``: what is not as in ``tiny.make_model``. ``rope``: baked over the checkpoint's own, ``None`` for the
    checkpoint's own. ``bound``: on the mean KL in nats; why it is not 1e-6 stands in the family's file. ``beyond``:
    whether the scaling says of which context it starts. ``exact``: whether llama.cpp can be made to run it."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    rope: RopeScaling | None = YARN_4
    bound: float = 1e-6
    beyond: bool = True
    exact: bool = True


def _nested(full: dict[str, Any], base: float, sliding_base: float) -> dict[str, Any]:
    """Rope parameters by layer kind, of which the sliding one is not scaled."""
    return {
        "full_attention": {"rope_theta": base, **full},
        "sliding_attention": {"rope_type": "default", "rope_theta": sliding_base},
    }


_OWN_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_OWN_LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "rope_theta": 1e6,
}  # fmt: skip
_LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
_LATENT = {
    "num_hidden_layers": 3, "num_key_value_heads": 4, "first_k_dense_replace": 1, "q_lora_rank": 48,
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "moe_intermediate_size": 48, "n_shared_experts": 2,
}  # fmt: skip
_GPT_OSS = {"num_hidden_layers": 3, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 32}
_NARROW = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
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
    "deepseek_v2": Row("deepseek_v2", _LATENT),
    "deepseek_v2-lite-mscale": Row("deepseek_v2", _LATENT | {"q_lora_rank": None, "max_position_embeddings": 256,
        "rope_parameters": _OWN_YARN | {"rope_theta": 1e4, "mscale": 0.707, "mscale_all_dim": 0.707}}, None),
    "deepseek_v3": Row("deepseek_v3", _LATENT | {"n_group": 4, "topk_group": 2}),
    "deepseek_v3-mscale": Row("deepseek_v3", _LATENT | {"n_group": 4, "topk_group": 2, "max_position_embeddings": 256,
        "rope_parameters": _OWN_YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0}}, None),
    "deepseek_v3-linear": Row("deepseek_v3", _LATENT | {"n_group": 1, "topk_group": 1},
                              RopeScaling("linear", factor=4)),
    "kimi-k2-betas": Row("deepseek_v3", _LATENT | {"n_group": 1, "topk_group": 1, "max_position_embeddings": 256,
        "rope_parameters": _OWN_YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0,
                                        "beta_fast": 1.0, "beta_slow": 1.0}}, None),
    "exaone4-1.2b": Row("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2,
        "rope_parameters": _OWN_LLAMA3, "max_position_embeddings": 256}, None),
    "exaone4-32b": Row("exaone4", _NARROW | {"num_hidden_layers": 64, "sliding_window": 32,
        "initializer_range": 0.1, "rope_parameters": _OWN_LLAMA3, "max_position_embeddings": 256}, None),
    "falcon": Row("falcon", {"hidden_size": 128, "num_kv_heads": None, "alibi": False}),
    "falcon-40b": Row("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": Row("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-many-kv": Row("falcon", {"multi_query": False, "ffn_hidden_size": 160}),
    "gemma2": Row("gemma2", {"num_hidden_layers": 3, "head_dim": 48, "query_pre_attn_scalar": 48,
                  "sliding_window": 32, "tie_word_embeddings": True}, bound=2e-6),
    "gemma2-27b": Row("gemma2", _NARROW | {"num_hidden_layers": 46, "head_dim": 24, "query_pre_attn_scalar": 16,
                      "sliding_window": 32, "tie_word_embeddings": True, "initializer_range": 0.05}),
    "gemma3_text": Row("gemma3_text", {"num_hidden_layers": 7, "head_dim": 48, "query_pre_attn_scalar": 48,
                       "sliding_window": 32, "tie_word_embeddings": True}, bound=1e-5),
    "gemma3_text-linear": Row("gemma3_text", {"num_hidden_layers": 7, "head_dim": 48, "query_pre_attn_scalar": 48,
        "sliding_window": 32, "max_position_embeddings": 256, "final_logit_softcapping": 20.0,
        "rope_parameters": _nested({"rope_type": "linear", "factor": 8.0}, 1e6, 1e4)}, None, 1e-5, beyond=False),
    "glm4": Row("glm4", {"head_dim": 48}),
    "gpt_neox": Row("gpt_neox"),
    "gpt_neox-serial": Row("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_fast"}),
    "gpt_oss": Row("gpt_oss", _GPT_OSS | {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}),
    "gpt_oss-own": Row("gpt_oss", _GPT_OSS | {"max_position_embeddings": 256, "head_dim": 64,
        "rope_parameters": _OWN_YARN | {"truncate": False, "rope_theta": 150000.0}}, None, 0.31, exact=False),
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
    "olmo3": Row("olmo3", {"num_hidden_layers": 5, "sliding_window": 32}),
    "olmo3-own": Row("olmo3", {"num_hidden_layers": 5, "sliding_window": 32, "max_position_embeddings": 256,
                     "rope_parameters": _nested(_OWN_YARN | {"attention_factor": 1.2}, 5e5, 5e5)}, None),
    "phi": Row("phi"),
    "phi3": Row("phi3", {"rope_parameters": _LONGROPE | {"short_factor": [1 + 0.02 * i for i in range(16)],
        "long_factor": [1.05 + 0.6 * i for i in range(16)]}, "max_position_embeddings": 256,
        "original_max_position_embeddings": 64}, None),
    "phi3-partial": Row("phi3", {"rope_parameters": _LONGROPE | {"short_factor": [1 + 0.02 * i for i in range(12)],
        "long_factor": [1.05 + 0.6 * i for i in range(12)], "partial_rotary_factor": 0.75},
        "max_position_embeddings": 256, "original_max_position_embeddings": 64}, None),
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
    report = verify(out, checkpoint, tolerance=row.bound)
    logits = {check.quantity: check.value for check in report.checks if check.level == "logits"}
    assert len(logits) == 1 + row.beyond, "in the window and beyond it"
    assert max(logits.values()) <= row.bound, logits
    assert report.passed is row.exact, report


def _gelu_of_ggml(values: Any) -> Any:
    """The tanh approximation through a table of float16 values, which ggml's CPU code looks its GELU up in."""
    import torch

    inner = torch.nn.functional.gelu(values.half().float(), approximate="tanh").half().float()
    return torch.where(values <= -10, 0.0, torch.where(values >= 10, values, inner))


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("falcon", 5e-9), ("gemma2", 1e-7), ("gemma2-27b", 5e-8), ("gemma3_text", 5e-7), ("gemma3_text-linear", 5e-7),
        ("gpt_neox", 5e-9), ("gpt_neox-serial", 5e-9), ("phi", 5e-9), ("starcoder2", 5e-9),
    ],
)  # fmt: skip
def test_the_rest_is_the_activation(name: str, rest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ggml's own GELU in transformers the logits agree as closely as those of other families."""
    from torch import nn
    from transformers.activations import ACT2FN

    class Gelu(nn.Module):
        forward = staticmethod(_gelu_of_ggml)

    row = ROWS[name]
    checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    out = tmp_path / "out.gguf"
    convert(ConvertOptions(checkpoint, out, row.rope))
    found = []
    for _ in range(2):
        report = verify(out, checkpoint, levels=["logits"])
        found.append(max(check.value for check in report.checks))
        for activation in ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"):
            monkeypatch.setitem(ACT2FN, activation, Gelu)
    assert found[1] <= rest < found[0]


def _metadata(checkpoint: Path) -> dict[str, Any]:
    planned = plan(ConvertOptions(checkpoint, checkpoint.parent / "planned.gguf"))
    names = {f"tensor {t.name}": (t.shape, t.type) for t in planned.tensors}
    return {key: field.value for key, field in planned.fields.items()} | names


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_a_config_leaves_out_is_what_transformers_fills_in(row: Row, tmp_path: Path) -> None:
    """Every key that has the value of transformers' class is taken out of config.json: nothing changes."""
    from transformers import AutoConfig

    checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    path = checkpoint / "config.json"
    values = json.loads(path.read_text())
    if "rope_parameters" not in row.config:  # the class's own base and share of a head
        del values["rope_parameters"]
        path.write_text(json.dumps(values))
    full = _metadata(checkpoint)
    usual = json.loads(type(AutoConfig.for_model(row.model_type))().to_json_string(use_diff=False))
    kept = ("model_type", "num_key_value_heads")  # the tensors' shapes would tell
    silent = {k: v for k, v in values.items() if k in kept or k not in usual or usual[k] != v}
    assert len(silent) < len(values)
    path.write_text(json.dumps(silent))
    assert _metadata(checkpoint) == full
    rope = AutoConfig.from_pretrained(checkpoint).rope_parameters
    assert full[f"{full['general.architecture']}.rope.freq_base"] == pytest.approx(rope["rope_theta"])


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        ("apertus", {"rope_parameters": None}, "rope_parameters is missing"),
        ("cohere2", {"tie_word_embeddings": False}, "cohere2 has no output matrix"),
        ("ernie4_5", {"use_bias": True}, "bias, and llama.cpp's architecture ernie4_5 adds no bias there"),
        ("falcon", {"alibi": True}, "this model has ALiBi"),
        ("falcon", {"bias": True}, "falcon has no biases"),
        ("falcon", {"parallel_attn": False}, "side by side"),
        ("gpt_neox", {"attention_bias": False}, "has biases on all projections"),
        ("gpt_neox", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("lfm2", {"layer_types": ["conv", "conv"]}, "llama.cpp needs both kinds"),
        ("minicpm3", {"scale_depth": 1.0}, "computes with 1.4"),
        ("nemotron", {"head_dim": 48}, "hidden_size / num_attention_heads"),
        ("olmo2", {"attention_bias": True}, "o_proj.bias, and llama.cpp's architecture olmo2 adds no bias there"),
        ("phi", {"qk_layernorm": True}, "no norm of queries and keys"),
        ("qwen2_moe", _EXPERTS | {"norm_topk_prob": True}, "does not normalize"),
        ("qwen2_moe", _EXPERTS | {"mlp_only_layers": [0]}, "has experts in every layer"),
        ("qwen3_moe", _EXPERTS | {"norm_topk_prob": False}, "normalizes the weights"),
        ("smollm3", {"no_rope_layer_interval": 2}, "rotates in all layers but every 4th"),
        ("starcoder2", {"use_bias": False}, "has biases on all projections"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    model_type: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = make_model(tmp_path / "model", model_type, **config)
    if "rope_parameters" in config:
        path = checkpoint / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "rope_parameters"}))
    with pytest.raises(CheckpointError, match=message):
        plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))


@pytest.mark.parametrize("model_type", ["mistral", "starcoder2"])
def test_a_window_that_llama_cpp_has_not_limits_the_context(model_type: str, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", model_type, max_position_embeddings=256, sliding_window=96)
    out = tmp_path / "out.gguf"
    planned = convert(ConvertOptions(checkpoint, out))
    assert any("sliding_window is 96" in note for note in planned.notes)
    report = verify(out, checkpoint)
    assert report.context == 96
    assert report.passed, report


@pytest.mark.parametrize(
    ("model_type", "layers", "safe"), [("smollm3", 4, False), ("smollm3", 3, True), ("cohere2", 4, False)]
)
def test_layers_that_do_not_rotate_make_a_shift_wrong(model_type: str, layers: int, safe: bool, tmp_path: Path) -> None:
    """llama.cpp 0c1e57098 turns all layers' cached keys in a shift."""
    checkpoint = make_model(tmp_path / "model", model_type, num_hidden_layers=layers, tie_word_embeddings=True)
    out = tmp_path / "out.gguf"
    planned = convert(ConvertOptions(checkpoint, out, RopeScaling("linear", factor=4)))
    report = verify(out, levels=["shift"])
    assert report.shift_safe is safe
    assert all(row.k_norm == pytest.approx(1, abs=1e-6) for row in report.shifts)
    assert safe or "those of layers that do not rotate" in report.checks[0].why
    assert planned.encoding is not None
    assert not planned.encoding.shift_safe  # of the architecture, whatever its size
    assert not inspect(out).shift_safe
