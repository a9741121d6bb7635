"""Tables against transformers' own, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from llama_ropes import GEOMETRY, llama

from ggext.errors import RopeError
from ggext.rope.compare import compare
from ggext.rope.config import read_rope
from ggext.rope.encode import encode
from ggext.rope.methods import make_table, theta
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable


def transformers_table(config: dict[str, Any]) -> tuple[list[float], float]:
    pytest.importorskip("torch")
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    values = {k: v for k, v in config.items() if k != "model_type"}
    parsed = AutoConfig.for_model(config["model_type"], **values)
    kind = parsed.rope_parameters["rope_type"]
    make = ROPE_INIT_FUNCTIONS.get(
        kind, LlamaRotaryEmbedding.compute_default_rope_parameters
    )
    inv_freq, gain = make(parsed)
    return inv_freq.double().tolist(), gain


def assert_equals_transformers(config: dict[str, Any]) -> RopeTable:
    rope = read_rope(config, "norm")
    table = make_table(rope.scaling, rope.geometry)
    inv_freq, gain = transformers_table(config)
    assert table.inv_freq == pytest.approx(inv_freq, rel=1e-6, abs=0)
    assert table.attention_factor == pytest.approx(gain, rel=1e-7)
    return table


CONTEXTS = {"Llama-3.2-1B.json": 131072, "vicuna-7b-v1.5-16k.json": 16384}


@pytest.mark.shared("configs")
@pytest.mark.parametrize("name", CONTEXTS)
def test_real_llama_configs_equal_transformers(shared: Path, name: str) -> None:
    config = json.loads((shared / "configs" / name).read_text())
    assert assert_equals_transformers(config).context == CONTEXTS[name]


@pytest.mark.shared("configs")
def test_every_llama_config_is_covered(shared: Path) -> None:
    configs = {
        p.name: json.loads(p.read_text()) for p in (shared / "configs").glob("*.json")
    }
    assert {
        name for name, c in configs.items() if c.get("model_type") == "llama"
    } == set(CONTEXTS)


SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "old-key": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn-untruncated": {
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": False}
    },
    "yarn-betas": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 16,
            "beta_slow": 2,
        }
    },
    "yarn-equal-betas": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 1,
            "beta_slow": 1,
        }
    },
    "yarn-mscale": {
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "mscale": 0.7,
            "mscale_all_dim": 1.1,
        }
    },
    "yarn-mscale-zero": {
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 0.0,
        }
    },
    "yarn-gain": {
        "rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 0.9}
    },
    "yarn-outside-wins": {
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
        "original_max_position_embeddings": 1024,
    },
    "theta-inside": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "head-dim": {"head_dim": 32, "rope_scaling": {"type": "yarn", "factor": 3.7}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    },
}


@pytest.mark.parametrize("config", SCALINGS.values(), ids=SCALINGS)
def test_tables_equal_transformers(config: dict[str, Any]) -> None:
    assert_equals_transformers(llama(**config))


def test_table_by_hand() -> None:
    """YaRN ×4 on d = 4, base 100, L0 = 256: θ = (1, 0.1); c(32) = 0.10 → 0, c(1) = 1.61 → 2; ramp
    (0, ½)."""
    geometry = RopeGeometry(4, 4, 100.0, "norm", 256)
    table = make_table(RopeScaling("yarn", factor=4), geometry)
    assert table.inv_freq == pytest.approx((1.0, 0.1 / 4 * 0.5 + 0.1 * 0.5))
    assert table.attention_factor == pytest.approx(1 + 0.1 * math.log(4))
    assert table.context == 1024
    assert table.wavelengths[0] == pytest.approx(2 * math.pi)


def test_ntk_keeps_the_first_pair_and_interpolates_the_last() -> None:
    table = make_table(RopeScaling("ntk", factor=8), GEOMETRY)
    unscaled = theta(GEOMETRY)
    assert table.inv_freq[0] == unscaled[0]
    assert table.inv_freq[-1] == pytest.approx(unscaled[-1] / 8)


@pytest.mark.parametrize(
    ("rope_scaling", "message"),
    [
        ({"type": "magic", "factor": 2.0}, "'magic' is unknown; known: default"),
        ({"type": "linear"}, "needs factor"),
        ({"type": "linear", "factor": 0.5}, "must be 1 or more"),
        ({"type": "linear", "factor": 0}, "must be above 0"),
        ({"type": "linear", "factor": -2.0}, "must be above 0"),
        ({"type": "linear", "factor": "4"}, "must be a number"),
        ({"type": "linear", "factor": True}, "must be a number"),
        ({"type": "linear", "factor": float("nan")}, "must be a finite number"),
        ({"type": "linear", "factor": 10**400}, "too large"),
        ({"type": 7, "factor": 2.0}, "must be a string"),
        ({"type": "yarn", "factor": 4.0, "truncate": 0}, "true or false"),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12.5},
            "whole number of tokens",
        ),
        (
            {"rope_type": "llama3", "factor": 8.0},
            "needs low_freq_factor, high_freq_factor",
        ),
        ({"type": "dynamic", "factor": 2.0}, "llama.cpp has no such mode"),
        (
            {"full_attention": {"rope_type": "default"}},
            "separate settings for full_attention",
        ),
        ([1], "must be an object"),
    ],
)
def test_bad_configs_are_refused(rope_scaling: Any, message: str) -> None:
    def read() -> RopeTable:
        rope = read_rope(llama(rope_scaling=rope_scaling), "norm")
        encode(rope.scaling, rope.geometry, "llama")
        return make_table(rope.scaling, rope.geometry)

    with pytest.raises(RopeError, match=message):
        read()


@pytest.mark.parametrize(
    ("rope_scaling", "method", "note"),
    [
        (
            {"type": "linear", "factor": 2.0, "attention_factor": 1.1},
            "linear",
            "attention_factor 1.1, which transformers does not read with the rope type linear",
        ),
        (
            {"type": "linear", "rope_type": "yarn", "factor": 2.0},
            "yarn",
            "rope_type is yarn and type is linear; rope_type is taken",
        ),
        ({"factor": 2.0}, "none", "factor 2.0, which transformers does not read"),
        ({"rope_type": "default", "factor": 2.0}, "none", "the rope type default"),
        (
            {"type": "yarn", "factor": 4.0, "attn_factor": 0.9},
            "yarn",
            "the key that it reads is attention_factor",
        ),
        ({"type": "yarn", "factor": 4.0, "beta_fats": 3}, "yarn", "have beta_fats 3"),
    ],
)
def test_what_the_judge_ignores_is_told(
    rope_scaling: Any, method: str, note: str
) -> None:
    rope = read_rope(llama(rope_scaling=rope_scaling), "norm")
    assert rope.scaling.method == method
    assert note in " ".join(rope.notes)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (RopeScaling("yarn"), "needs a factor"),
        (RopeScaling("linear", factor=2, beta_fast=3), "does not use beta_fast"),
        (RopeScaling("yarn", factor=math.inf), "finite number"),
        (
            RopeScaling("llama3", factor=8, low_freq_factor=4, high_freq_factor=1),
            "not below low_freq_factor",
        ),
        (RopeScaling("none", factor=2), "does not use factor"),
    ],
)
def test_bad_requests_are_refused(scaling: RopeScaling, message: str) -> None:
    with pytest.raises(RopeError, match=message):
        make_table(scaling, GEOMETRY)


def test_tables_of_different_length_are_infinitely_wrong() -> None:
    short = RopeTable((1.0,), 1.0, 8)
    assert compare(short, RopeTable((1.0, 0.5), 1.0, 8)).frequency_error == math.inf
