"""Encodings against llama.cpp's reading, and the recipe in the file."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_ropes import GEOMETRY

from ggext.errors import RopeError
from ggext.rope.decode import decode
from ggext.rope.encode import encode
from ggext.rope.keys import ROPE_FREQS, stated_method
from ggext.rope.recipe import COMMAND_LINE, Recipe, parse_recipe
from ggext.rope.scaling import RopeGeometry, RopeScaling


@pytest.mark.parametrize(
    ("scaling", "arch", "name"),
    [
        (RopeScaling(), "llama", "keys"),
        (RopeScaling("linear", factor=3.3), "qwen2", "keys"),
        (RopeScaling("ntk", factor=4), "llama", "keys"),
        (RopeScaling("yarn", factor=4), "qwen2", "keys"),
        (RopeScaling("yarn", factor=4, attention_factor=1.0), "qwen2", "keys"),
        (RopeScaling("yarn", factor=4, beta_fast=16), "llama", "tensor"),
        (RopeScaling("yarn", factor=32, truncate=False), "llama", "tensor"),
        (RopeScaling("llama3", factor=8), "llama", "tensor"),
    ],
)
def test_the_simplest_exact_encoding_is_chosen(
    scaling: RopeScaling, arch: str, name: str
) -> None:
    encoding = encode(scaling, GEOMETRY, arch)
    assert encoding.name == name
    assert encoding.exactness.is_exact


def test_yarn_keys_are_what_llama_cpp_multiplies() -> None:
    keys = encode(
        RopeScaling("yarn", factor=4, attention_factor=1.5), GEOMETRY, "llama"
    ).keys
    assert keys == {
        "rope.freq_base": 10000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4,
        "rope.scaling.original_context_length": 4096,
        "rope.scaling.attn_factor": pytest.approx(1.5 / (1 + 0.1 * math.log(4))),
        "context_length": 16384,
        "rope.dimension_count": 64,
    }


def test_what_the_architecture_cannot_run_is_refused() -> None:
    """qwen2 loads no rope_freqs: never written silently."""
    with pytest.raises(RopeError, match=r"qwen2 cannot run llama3 .* frequency error"):
        encode(RopeScaling("llama3", factor=8), GEOMETRY, "qwen2")


def test_an_unestablished_architecture_is_refused() -> None:
    with pytest.raises(RopeError, match="'mamba' reads RoPE keys is not established"):
        encode(RopeScaling("linear", factor=2), GEOMETRY, "mamba")


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ({"rope.scaling.type": "magic"}, {}, "'magic'"),
        ({"rope.scaling.factor": -4.0}, {}, "must be a number above 0"),
        ({"rope.scaling.factor": "4"}, {}, "must be a number of type FLOAT32"),
        ({"rope.freq_base": math.nan}, {}, "finite number above 1"),
        ({"rope.dimension_count": 7}, {}, "even number"),
        ({"context_length": 0}, {}, "no context_length"),
        ({}, {ROPE_FREQS: [1.0] * 3}, "has 3 values"),
        ({}, {ROPE_FREQS: [0.0] * 32}, "not a number above 0"),
    ],
)
def test_bad_keys_are_refused(
    keys: dict[str, Any], tensors: dict[str, list[float]], message: str
) -> None:
    good = {
        "rope.dimension_count": 64,
        "rope.freq_base": 10000.0,
        "context_length": 4096,
    }
    with pytest.raises(RopeError, match=message):
        decode(good | keys, tensors, "llama")


def test_an_absent_type_means_linear() -> None:
    keys = {
        "rope.dimension_count": 64,
        "context_length": 4096,
        "rope.scaling.factor": 4.0,
    }
    assert decode(keys, {}, "llama").inv_freq[0] == 0.25
    assert decode(keys | {"rope.scaling.type": "none"}, {}, "llama").inv_freq[0] == 1.0


factors = st.floats(1, 1000, allow_nan=False)


@given(
    factor=factors,
    base=st.floats(100, 1e7),
    context=st.integers(64, 1 << 20),
    pairs=st.integers(2, 128),
    gain=st.one_of(st.none(), st.floats(0.1, 10)),
    method=st.sampled_from(["linear", "ntk", "yarn", "llama3"]),
)
def test_every_request_is_encoded_exactly_for_llama(
    factor: float,
    base: float,
    context: int,
    pairs: int,
    gain: float | None,
    method: Any,
) -> None:
    geometry = RopeGeometry(2 * pairs, 2 * pairs, base, "norm", context)
    scaling = RopeScaling(method, factor=factor, attention_factor=gain)
    assert encode(scaling, geometry, "llama").exactness.is_exact


def test_a_recipe_survives_the_file() -> None:
    recipe = Recipe(
        RopeScaling("yarn", factor=4, beta_fast=16), GEOMETRY, "tensor", COMMAND_LINE
    )
    assert parse_recipe(json.dumps(recipe.as_dict())) == recipe


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nul",
        '{"geometry": 3}',
        "[" * 100000,
        json.dumps(
            Recipe(RopeScaling("yarn"), GEOMETRY, "keys", "x").as_dict()
        ).replace("64", '"64"'),
    ],
)
def test_a_malformed_recipe_is_refused(text: str) -> None:
    with pytest.raises(RopeError):
        parse_recipe(text)


@pytest.mark.parametrize(
    ("keys", "stated"),
    [
        ({}, ("none", 1.0)),
        ({"rope.scaling.factor": 4.0}, ("linear", 4.0)),
        ({"rope.scale_linear": 2.0}, ("linear", 2.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, ("none", 1.0)),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, ("yarn", 4.0)),
        ({"rope.scaling.type": "yarn"}, ("none", 1.0)),
        ({"rope.scaling.type": "longrope"}, ("longrope", 1.0)),
    ],
)
def test_what_the_keys_of_another_program_state(
    keys: dict[str, Any], stated: tuple[str, float]
) -> None:
    assert stated_method(keys) == stated
