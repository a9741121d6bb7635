"""The table is proved: in transformers' memory, after the merge, in the GGUF file; and what would
train another one without a word is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import make_llama

from ggext.errors import RopeError
from ggext.rope.scaling import Method, RopeGeometry, RopeScaling
from ggext.tune.tables import WantedRope, prove_model, set_context

pytest.importorskip("peft", reason="the extra tune is not installed")
transformers = pytest.importorskip(
    "transformers", reason="the extra tune is not installed"
)

GEOMETRY = RopeGeometry(32, 32, 10000.0, "norm", 64)


def wanted(method: Method = "yarn", factor: float = 4.0) -> WantedRope:
    return WantedRope(RopeScaling(method, factor=factor, original_context=64), GEOMETRY)


def model_of(config: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(make_llama(tmp_path / "model"))


@pytest.mark.parametrize("method", ["yarn", "linear", "ntk", "llama3"])
def test_the_table_in_memory_is_ours(config: Any, method: Method) -> None:
    set_context(config, wanted(method))
    proof = prove_model("before training", model_of(config), wanted(method))
    assert proof.pairs == 16
    assert proof.difference.frequency_error < 1e-6
    assert "16 pairs" in str(proof)


def test_the_sliding_layers_table_is_proved_too() -> None:
    config = transformers.Gemma3TextConfig(
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=32,
        vocab_size=16,
    )
    rope = replace(wanted(), geometry=replace(GEOMETRY, base=1e6, sliding_base=1e4))
    set_context(config, rope)
    model = model_of(config)
    prove_model("before training", model, rope)
    model.model.rotary_emb.sliding_attention_inv_freq *= 1.001
    with pytest.raises(RopeError, match="is not the one that was asked for"):
        prove_model("before training", model, rope)


def test_trap_a_config_changed_after_loading_keeps_the_old_table(config: Any) -> None:
    model = model_of(config)
    set_context(model.config, wanted())
    with pytest.raises(RopeError, match="the RoPE table before training"):
        prove_model("before training", model, wanted())


def test_trap_the_original_length_becomes_the_new_one(config: Any) -> None:
    """transformers takes max_position_embeddings, already the new length, for the original one."""
    config.max_position_embeddings = 256
    config.rope_parameters = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    config.standardize_rope_params()
    with pytest.raises(RopeError, match="pair"):
        prove_model("before training", model_of(config), wanted())


def test_trap_without_a_base(config: Any) -> None:
    """transformers fails late, or takes a default; ours always says it."""
    set_context(config, wanted())
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.rope_parameters["original_max_position_embeddings"] == 64
    assert config.max_position_embeddings == 256


@pytest.mark.parametrize("place", ["base", "factor", "gain"])
def test_a_table_that_differs_a_little_is_refused(config: Any, place: str) -> None:
    set_context(config, wanted())
    if place == "base":
        config.rope_parameters["rope_theta"] *= 1 + 1e-5
    elif place == "factor":
        config.rope_parameters["factor"] *= 1 + 1e-5
    else:
        config.rope_parameters["attention_factor"] = 1.0
    with pytest.raises(RopeError, match="nothing that is trained with it holds"):
        prove_model("before training", model_of(config), wanted())


def test_a_model_without_tables_is_refused() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=1, vocab_size=16)
    with pytest.raises(RopeError, match="no rotary table"):
        prove_model("before training", model_of(config), wanted())
