"""Models whose layers do not all rotate alike, and DeepSeek's scale of the scores: the tables."""

from __future__ import annotations

from typing import Any

import pytest
from layered import YARN

from ggext.errors import RopeError
from ggext.rope import methods
from ggext.rope.config import read_rope
from ggext.rope.decode import decode, decode_sliding, layer_kinds, score_scale
from ggext.rope.encode import encode
from ggext.rope.keys import LOG_MULTIPLIER, SLIDING_BASE
from ggext.rope.scaling import RopeGeometry, RopeScaling

GEMMA3 = RopeGeometry(64, 64, 1e6, "neox", 256, sliding_base=1e4)
OLMO3 = RopeGeometry(64, 64, 5e5, "neox", 256, sliding_base=5e5)
LATENT = RopeGeometry(64, 64, 1e4, "norm", 4096)
WINDOW = {"attention.sliding_window": 32}


@pytest.mark.parametrize(
    "scaling", [YARN, RopeScaling("linear", factor=8), RopeScaling("ntk", factor=4)]
)
def test_gemma3_keeps_the_sliding_layers_as_they_are(scaling: RopeScaling) -> None:
    encoding = encode(scaling, GEMMA3, "gemma3")
    assert (encoding.name, encoding.keys[SLIDING_BASE]) == ("keys", 1e4)
    assert encoding.exactness.is_exact
    sliding = decode_sliding(encoding.keys | WINDOW, "gemma3")
    assert sliding is not None
    assert sliding.inv_freq == pytest.approx(methods.theta(GEMMA3, 1e4))
    assert sliding.attention_factor == 1.0


@pytest.mark.parametrize(
    ("scaling", "geometry", "arch", "message"),
    [
        (
            RopeScaling("yarn", factor=4, attention_factor=1.0),
            GEMMA3,
            "gemma3",
            "gain error of 0.12",
        ),
        (
            RopeScaling("linear", factor=4, attention_factor=1.2),
            GEMMA3,
            "gemma3",
            "gain error of 0.2",
        ),
        (RopeScaling("ntk", factor=4), OLMO3, "olmo2", "cannot run ntk"),
        (
            YARN,
            RopeGeometry(64, 64, 5e5, "neox", 256, sliding_base=1e4),
            "olmo2",
            "cannot run yarn",
        ),
        (YARN, GEMMA3, "qwen2", "cannot run yarn"),
    ],
)
def test_what_would_change_the_sliding_layers_is_refused(
    scaling: RopeScaling, geometry: RopeGeometry, arch: str, message: str
) -> None:
    with pytest.raises(RopeError, match=message):
        encode(scaling, geometry, arch)


def test_olmo3_scales_the_other_layers_by_any_gain() -> None:
    encoding = encode(
        RopeScaling("yarn", factor=4, attention_factor=1.3), OLMO3, "olmo2"
    )
    assert encoding.exactness.is_exact
    assert SLIDING_BASE not in encoding.keys


@pytest.mark.parametrize(
    ("arch", "keys", "expected"),
    [
        ("gemma3", {"block_count": 7} | WINDOW, "uuuuusu"),
        ("gemma3", {"block_count": 7}, "sssssss"),
        (
            "gemma3",
            {"block_count": 3, "attention.sliding_window_pattern": [False, True, False]}
            | WINDOW,
            "sus",
        ),
        (
            "gemma3",
            {"block_count": 4, "attention.sliding_window_pattern": 2} | WINDOW,
            "usus",
        ),
        ("olmo2", {"block_count": 5} | WINDOW, "uuusu"),
        ("gemma2", {"block_count": 2} | WINDOW, "ss"),
        ("exaone4", {"block_count": 8} | WINDOW, "ssssssss"),
        ("exaone4", {"block_count": 64}, "sss-" * 16),
        ("smollm3", {"block_count": 5}, "sss-s"),
    ],
)
def test_how_each_layer_rotates(arch: str, keys: dict[str, Any], expected: str) -> None:
    letters = {"s": "scaled", "u": "unscaled", "-": "unrotated"}
    assert layer_kinds(keys, arch) == tuple(letters[letter] for letter in expected)


def test_a_pattern_of_the_wrong_length_is_refused() -> None:
    keys = {"block_count": 3, "attention.sliding_window_pattern": [True]} | WINDOW
    with pytest.raises(RopeError, match="has 1 values; the file has 3 layers"):
        layer_kinds(keys, "olmo2")


def test_settings_of_the_sliding_layers_that_llama_cpp_has_not_are_refused() -> None:
    config = {
        "model_type": "olmo3",
        "hidden_size": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {
                "rope_type": "linear",
                "factor": 2.0,
                "rope_theta": 1e4,
            },
        },
    }
    with pytest.raises(
        RopeError,
        match="sliding_attention layers rotate 32 of 32 dimensions with linear scaling",
    ):
        read_rope(config, "neox")


# DeepSeek

DEEPSEEK = {
    "v3": RopeScaling("yarn", factor=40, mscale=1.0, mscale_all_dim=1.0),
    "v2-lite": RopeScaling("yarn", factor=40, mscale=0.707, mscale_all_dim=0.707),
    "no-mscale": RopeScaling("yarn", factor=4),
    "gain-1": RopeScaling("yarn", factor=4, attention_factor=1.0),
    "both": RopeScaling("yarn", factor=8, mscale=1.0, mscale_all_dim=0.8),
    "linear": RopeScaling("linear", factor=4),
    "ntk": RopeScaling("ntk", factor=4),
}


@pytest.mark.parametrize("scaling", DEEPSEEK.values(), ids=DEEPSEEK)
def test_gain_and_scale_of_the_scores(scaling: RopeScaling) -> None:
    encoding = encode(scaling, LATENT, "deepseek2")
    assert encoding.exactness.is_exact
    assert score_scale(encoding.keys, "deepseek2") == pytest.approx(
        methods.score_scale(scaling), rel=1e-6
    )
    table = decode(encoding.keys, {}, "deepseek2")
    assert table.attention_factor == pytest.approx(
        methods.make_table(scaling, LATENT).attention_factor, rel=1e-6
    )


def test_the_keys_of_deepseek_3_are_upstreams() -> None:
    keys = encode(DEEPSEEK["v3"], LATENT, "deepseek2").keys
    assert keys[LOG_MULTIPLIER] == pytest.approx(0.1)
    assert keys["rope.scaling.attn_factor"] == 1.0


def test_a_gain_cannot_be_folded_into_latent_attention() -> None:
    with pytest.raises(RopeError, match="has no rows of its own to fold a gain into"):
        encode(DEEPSEEK["no-mscale"], LATENT, "deepseek2", "folded")


# DeepSeek 4: layers with compressed tokens are scaled, those with a window alone are not

DEEPSEEK4 = RopeGeometry(64, 512, 1.6e5, "norm", 65536, sliding_base=1e4)
PUBLISHED_4: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "num_attention_heads": 64,
    "hidden_size": 4096,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "max_position_embeddings": 1048576,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 65536,
    },
}


def test_deepseek_4_as_published() -> None:
    rope = read_rope(PUBLISHED_4, "norm")
    assert rope.geometry == DEEPSEEK4
    assert (rope.scaling.method, rope.scaling.factor) == ("yarn", 16)
    assert rope.scaling.attention_factor == 1.0  # whatever YaRN's own would be
    encoding = encode(rope.scaling, rope.geometry, "deepseek4")
    assert encoding.exactness.is_exact
    assert encoding.shift_safe  # llama.cpp never shifts it
    assert encoding.keys["attention.compress_rope_freq_base"] == 1.6e5
    assert encoding.keys["rope.freq_base"] == 1e4
    assert SLIDING_BASE not in encoding.keys


def test_deepseek_4_as_transformers_saves_it() -> None:
    by_kind = {
        "compress": PUBLISHED_4["rope_scaling"]
        | {"rope_theta": 160000, "partial_rotary_factor": 0.125, "attention_factor": 1},
        "main": {"rope_theta": 10000, "partial_rotary_factor": 0.125},
    }
    saved = {k: v for k, v in PUBLISHED_4.items() if k != "rope_scaling"}
    rope = read_rope(saved | {"rope_parameters": by_kind}, "norm")
    assert rope == read_rope(PUBLISHED_4, "norm")
    del by_kind["main"]["rope_theta"]
    with pytest.raises(RopeError, match="parameters of main have no rope_theta"):
        read_rope(saved | {"rope_parameters": by_kind}, "norm")


def test_a_gain_of_deepseek_4_is_refused() -> None:
    """llama.cpp takes YaRN's own away again, and reads no other."""
    with pytest.raises(RopeError, match=r"gain error of 0\.12.*attention_factor=1"):
        encode(YARN, DEEPSEEK4, "deepseek4")
    keys = encode(
        RopeScaling("yarn", factor=4, attention_factor=1.0), DEEPSEEK4, "deepseek4"
    ).keys
    told = keys | WINDOW | {"rope.scaling.attn_factor": 1.3}
    assert decode(told, {}, "deepseek4").attention_factor == 1.0
    sliding = decode_sliding(told, "deepseek4")
    assert sliding is not None
    assert sliding.attention_factor == 1.0
