"""Every real configuration in ../shared/configs against the rotary class that transformers has for
the model."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rope_configs import NESTED, llama, read

from ggext.errors import RopeError
from ggext.rope.config import read_rope, read_ropes
from ggext.rope.decode import decode, decode_sliding, turning_pairs
from ggext.rope.encode import encode
from ggext.rope.methods import make_table, make_tables
from ggext.rope.scaling import RopeGeometry, RopeScaling

pytest.importorskip("torch")
pytest.importorskip("transformers")


#: File → the rotary class that judges it (module under transformers.models, class).
JUDGES = {
    "DeepSeek-V2-Lite": ("deepseek_v2", "DeepseekV2RotaryEmbedding"),
    "DeepSeek-V3": ("deepseek_v3", "DeepseekV3RotaryEmbedding"),
    "Devstral-2-123B-Instruct": ("ministral3", "Ministral3RotaryEmbedding"),
    "EXAONE-4.0-32B": ("exaone4", "Exaone4RotaryEmbedding"),
    "Kimi-K2-Instruct": ("deepseek_v3", "DeepseekV3RotaryEmbedding"),
    "Llama-3.2-1B": ("llama", "LlamaRotaryEmbedding"),
    "MiniCPM-2B-128k": ("llama", "LlamaRotaryEmbedding"),
    "Olmo-3.1-32B-Instruct": ("olmo3", "Olmo3RotaryEmbedding"),
    "Phi-3.5-mini-instruct": ("phi3", "Phi3RotaryEmbedding"),
    "Phi-4-mini-instruct": ("phi3", "Phi3RotaryEmbedding"),
    "Qwen2.5-Coder-32B-Instruct_yarn": ("qwen2", "Qwen2RotaryEmbedding"),
    "Qwen2.5-VL-7B-Instruct": ("qwen2_5_vl", "Qwen2_5_VLRotaryEmbedding"),
    "Qwen3-0.6B": ("qwen3", "Qwen3RotaryEmbedding"),
    "gemma-3-4b-it_reduced": ("gemma3", "Gemma3RotaryEmbedding"),
    "gemma-4-26B-A4B": ("gemma4", "Gemma4TextRotaryEmbedding"),
    "gpt-oss-20b": ("gpt_oss", "GptOssRotaryEmbedding"),
    "internlm2_5-7b": ("llama", "LlamaRotaryEmbedding"),
    "vicuna-7b-v1.5-16k": ("llama", "LlamaRotaryEmbedding"),
}
#: Where the file alone is not the whole story: the note that says so.
NOTES = {
    "Kimi-K2-Instruct": (
        "transformers does not know model_type 'kimi_k2'; it is read as deepseek_v3"
    ),
    "MiniCPM-2B-128k": "transformers does not know model_type 'minicpm'; it is read as llama",
    "internlm2_5-7b": "transformers does not know model_type 'internlm2'; it is read as llama",
    "Qwen2.5-VL-7B-Instruct": "mrope_section [16, 24, 24]: the table holds for text",
    "EXAONE-4.0-32B": "layers of the kind full_attention do not rotate",
}
CONTEXTS = {
    "DeepSeek-V2-Lite": 163840,
    "DeepSeek-V3": 163840,
    "Devstral-2-123B-Instruct": 262144,
    "EXAONE-4.0-32B": 131072,
    "Kimi-K2-Instruct": 131072,
    "Llama-3.2-1B": 131072,
    "MiniCPM-2B-128k": 4 * 65536,
    "Olmo-3.1-32B-Instruct": 65536,
    "Phi-3.5-mini-instruct": 131072,
    "Phi-4-mini-instruct": 131072,
    "Qwen2.5-Coder-32B-Instruct_yarn": 131072,
    "Qwen2.5-VL-7B-Instruct": 128000,
    "Qwen3-0.6B": 40960,
    "gemma-3-4b-it_reduced": 131072,
    "gemma-4-26B-A4B": 262144,
    "gpt-oss-20b": 131072,
    "internlm2_5-7b": 65536,
    "vicuna-7b-v1.5-16k": 16384,
}


def transformers_config(config: dict[str, Any], judge: str) -> Any:
    from transformers import AutoConfig

    config = json.loads(json.dumps(config))  # transformers changes what it is given
    values = {
        k: v
        for k, v in config.items()
        if k not in ("model_type", "auto_map", "quantization_config")
    }
    model_type = (
        config["model_type"]
        if config["model_type"] in ("gemma3", "gemma4", "qwen2_5_vl")
        else judge
    )
    return AutoConfig.for_model(model_type, **values).get_text_config()


def judged(
    config: dict[str, Any], judge: tuple[str, str]
) -> dict[str, tuple[list[float], float]]:
    """Layer kind → (inv_freq, gain) as the model's rotary class has them before the first token."""
    module = import_module(f"transformers.models.{judge[0]}.modeling_{judge[0]}")
    rotary = getattr(module, judge[1])(transformers_config(config, judge[0]))
    buffers = dict(rotary.named_buffers())
    kinds = [
        n.removesuffix("_inv_freq")
        for n in buffers
        if n.endswith("_inv_freq") and "original" not in n
    ]
    if not kinds:
        return {
            "all": (buffers["inv_freq"].double().tolist(), rotary.attention_scaling)
        }
    return {
        k: (
            buffers[f"{k}_inv_freq"].double().tolist(),
            getattr(rotary, f"{k}_attention_scaling"),
        )
        for k in kinds
    }


@pytest.mark.shared("configs")
@pytest.mark.parametrize("name", JUDGES)
def test_the_table_equals_transformers(shared: Path, name: str) -> None:
    config, ropes = read(shared, name)
    expected = judged(config, JUDGES[name])
    if (
        name == "EXAONE-4.0-32B"
    ):  # the class has one table, the layers that use it are the sliding ones
        expected = {"sliding_attention": expected["all"]}
    assert set(ropes) == set(expected)
    for kind, (inv_freq, gain) in expected.items():
        table = make_table(ropes[kind].scaling, ropes[kind].geometry, length=1)
        assert table.inv_freq == pytest.approx(inv_freq, rel=1e-6, abs=0), kind
        assert table.attention_factor == pytest.approx(gain, rel=1e-7), kind
        assert (
            make_table(ropes[kind].scaling, ropes[kind].geometry).context
            == CONTEXTS[name]
        )
    notes = [note for rope in ropes.values() for note in rope.notes]
    assert any(NOTES[name] in note for note in notes) if name in NOTES else notes == []


@pytest.mark.shared("configs")
def test_every_config_is_judged(shared: Path) -> None:
    assert {path.stem for path in (shared / "configs").glob("*.json")} == set(JUDGES)


@pytest.mark.shared("configs")
@pytest.mark.parametrize(
    "name",
    [
        "Phi-3.5-mini-instruct",
        "Phi-4-mini-instruct",
        "MiniCPM-2B-128k",
        "internlm2_5-7b",
    ],
)
@pytest.mark.parametrize("beyond", [0, 1, 1000, 100_000])
def test_tables_that_depend_on_the_length(shared: Path, name: str, beyond: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config, ropes = read(shared, name)
    rope = ropes["all"]
    original = rope.scaling.original_context or 0
    make = ROPE_INIT_FUNCTIONS[rope.scaling.method]
    inv_freq, gain = make(
        transformers_config(config, JUDGES[name][0]), None, seq_len=original + beyond
    )
    table = make_table(rope.scaling, rope.geometry, original + beyond)
    assert table.inv_freq == pytest.approx(inv_freq.double().tolist(), rel=1e-6, abs=0)
    assert table.attention_factor == pytest.approx(gain, rel=1e-7)
    assert table.lengths is not None
    assert table.lengths[0] <= original + beyond <= table.lengths[1]


def test_the_regimes_of_a_method() -> None:
    geometry = RopeGeometry(4, 4, 10000.0, "norm", 100)
    longrope = RopeScaling(
        "longrope", factor=4, short_factors=(1.0, 1.5), long_factors=(2.0, 9.0)
    )
    assert [t.lengths for t in make_tables(longrope, geometry)] == [
        (1, 100),
        (101, 400),
    ]
    assert [t.inv_freq[1] for t in make_tables(longrope, geometry)] == pytest.approx(
        [0.01 / 1.5, 0.01 / 9]
    )
    dynamic = RopeScaling("dynamic", factor=2)
    assert [t.lengths for t in make_tables(dynamic, geometry)] == [(1, 100), (200, 200)]
    assert [
        t.lengths for t in make_tables(RopeScaling("yarn", factor=2), geometry)
    ] == [None]


@pytest.mark.parametrize("model_type", ["olmo3", "gemma3_text"])
def test_nested_parameters_equal_transformers(model_type: str) -> None:
    judge = {
        "olmo3": ("olmo3", "Olmo3RotaryEmbedding"),
        "gemma3_text": ("gemma3", "Gemma3RotaryEmbedding"),
    }[model_type]
    config = llama(
        model_type=model_type, head_dim=64, rope_parameters=NESTED, num_hidden_layers=6
    )
    module = import_module(f"transformers.models.{judge[0]}.modeling_{judge[0]}")
    rotary = getattr(module, judge[1])(transformers_config(config, model_type))
    for kind, rope in read_ropes(config, "neox").items():
        table = make_table(rope.scaling, rope.geometry)
        assert table.inv_freq == pytest.approx(
            getattr(rotary, f"{kind}_inv_freq").double().tolist(), rel=1e-6
        )
        assert table.attention_factor == pytest.approx(
            getattr(rotary, f"{kind}_attention_scaling"), rel=1e-7
        )


def test_a_kind_without_parameters_does_not_rotate() -> None:
    ropes = read_ropes(llama(rope_parameters=NESTED | {"full_attention": None}), "neox")
    assert set(ropes) == {"sliding_attention"}


HUNYUAN = {
    "type": "dynamic",
    "alpha": 1000.0,
    "factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "beta_fast": 32,
    "beta_slow": 1,
}


def test_hunyuans_alpha_is_a_fixed_table() -> None:
    from transformers import AutoConfig
    from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import (
        HunYuanDenseV1RotaryEmbedding,
    )

    config = llama(
        model_type="hunyuan_v1_dense", head_dim=64, rope_scaling=dict(HUNYUAN)
    )
    rope = read_rope(config, "neox")
    assert (rope.scaling.method, rope.scaling.factor) == ("ntk", 1000.0)
    values = {k: v for k, v in config.items() if k != "model_type"} | {
        "rope_scaling": dict(HUNYUAN)
    }
    rotary = HunYuanDenseV1RotaryEmbedding(
        AutoConfig.for_model("hunyuan_v1_dense", **values)
    )
    table = make_table(rope.scaling, rope.geometry)
    assert table.inv_freq == pytest.approx(rotary.inv_freq.double().tolist(), rel=1e-6)
    assert table.context == 4096


@pytest.mark.shared("configs-2026")
@pytest.mark.parametrize(
    ("name", "n_rot", "sections"),
    [
        ("DeepSeek-V3.2", 64, None),
        ("GLM-5.2", 64, None),
        ("GLM-4.5V", 64, (8, 12, 12)),
        ("Qwen3.5-27B", 64, (11, 11, 10)),
        ("Qwen3-VL-32B-Instruct", 128, (24, 20, 20)),
    ],
)
def test_configurations_of_2026(
    name: str, n_rot: int, sections: tuple[int, ...] | None, shared: Path
) -> None:
    """Each was refused before, or read with another number of rotated dimensions."""
    config = json.loads((shared / "configs-2026" / f"{name}.json").read_text())
    ropes = read_ropes(config, "neox")
    assert [rope.geometry.n_rot for rope in ropes.values()] == [n_rot]
    assert [rope.geometry.sections for rope in ropes.values()] == [sections]


@pytest.mark.shared("configs-2026")
def test_the_yarn_that_qwen_3_5s_card_tells_is_exact(shared: Path) -> None:
    """By 4, of 262,144 tokens, over interleaved sections of a quarter of a head."""
    config = json.loads((shared / "configs-2026" / "Qwen3.5-27B.json").read_text())
    encoding = encode(
        RopeScaling("yarn", factor=4), read_rope(config, "neox").geometry, "qwen35"
    )
    assert encoding.exactness.is_exact
    assert encoding.keys["rope.dimension_sections"] == (11, 11, 10, 0)
    config["text_config"]["rope_parameters"] |= {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 262144,
    }
    [(inv_freq, gain)] = judged(
        config, ("qwen3_5", "Qwen3_5TextRotaryEmbedding")
    ).values()
    table = decode(encoding.keys, encoding.tensors, "qwen35")
    assert table.inv_freq == pytest.approx(inv_freq, rel=1e-6, abs=0)
    assert table.attention_factor == pytest.approx(gain, rel=1e-6)
    assert table.context == 1_048_576


@pytest.mark.shared("configs")
def test_yarn_over_gemma_4s_proportional_rope_is_exact(shared: Path) -> None:
    """The quarter of the pairs that turns is the model's: transformers' YaRN over it, the others
    still, and the windows' layers with heads and a base of their own as they were."""
    config = json.loads((shared / "configs" / "gemma-4-26B-A4B.json").read_text())
    geometry = read_rope(config, "neox").geometry
    assert (geometry.n_rot, geometry.turning) == (512, 64)
    assert (geometry.sliding_n_rot, geometry.sliding_base) == (256, 1e4)
    encoding = encode(RopeScaling("yarn", factor=4), geometry, "gemma4")
    assert (encoding.name, encoding.exactness.is_exact) == ("keys", True)
    config["text_config"]["rope_parameters"]["full_attention"] = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 262144,
    }
    tables = judged(config, ("gemma4", "Gemma4TextRotaryEmbedding"))
    inv_freq, gain = tables["full_attention"]
    table = decode(encoding.keys, encoding.tensors, "gemma4")
    assert table.inv_freq[:64] == pytest.approx(inv_freq[:64], rel=1e-6, abs=0)
    assert max(table.inv_freq[64:]) <= 1e-30
    assert table.attention_factor == pytest.approx(gain, rel=1e-6)
    sliding = decode_sliding(
        {**encoding.keys, "attention.sliding_window": 1024}, "gemma4"
    )
    assert sliding is not None
    assert sliding.inv_freq == pytest.approx(
        tables["sliding_attention"][0], rel=1e-6, abs=0
    )
    assert sliding.attention_factor == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("factors", "turning"),
    [
        ([1.0, 1.0, 1e30], 2),
        ([1.0, 1.0], 2),
        ([1e30], 0),
        ([1.0, 2.0], None),
        ([1e30, 1.0], None),
    ],
)
def test_pairs_that_turn_are_read_from_the_factors(
    factors: list[float], turning: int | None
) -> None:
    assert turning_pairs(factors) == turning


def test_a_second_base_is_not_passed_over() -> None:
    config = {
        "model_type": "mimo_v2_flash",
        "hidden_size": 128,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "head_dim": 48,
        "rope_theta": 5e6,
        "swa_rope_theta": 1e4,
    }
    ropes = read_ropes(config, "neox")
    bases = {kind: rope.geometry.base for kind, rope in ropes.items()}
    assert bases == {"full_attention": 5e6, "sliding_attention": 1e4}
    for key in ("rope_theta", "swa_rope_theta"):
        with pytest.raises(RopeError, match=f"{key} is 20000.0, .* does not read"):
            read_ropes({**config, key: 2e4}, "neox")
    with pytest.raises(RopeError, match="swa_rope_theta"):
        read_ropes({**config, "model_type": "qwen3"}, "neox")
