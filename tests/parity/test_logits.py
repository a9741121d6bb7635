"""The judge: llama.cpp on the baked file against transformers on the checkpoint, same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import make_llama

from ggext.convert import ConvertOptions, convert
from ggext.rope.scaling import RopeScaling
from ggext.verify import Report, verify

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

CASES = {
    "none": RopeScaling("none"),
    "linear-2": RopeScaling("linear", factor=2),
    "linear-4": RopeScaling("linear", factor=4),
    "ntk-4": RopeScaling("ntk", factor=4),
    "yarn-2": RopeScaling("yarn", factor=2),
    "yarn-4": RopeScaling("yarn", factor=4),
    "yarn-7.5": RopeScaling("yarn", factor=7.5),
    "yarn-4-gain-1": RopeScaling("yarn", factor=4, attention_factor=1.0),
    "yarn-8-gain-1.5": RopeScaling("yarn", factor=8, attention_factor=1.5),
    "yarn-4-betas": RopeScaling(
        "yarn", factor=4, beta_fast=16, beta_slow=2, attention_factor=1.0
    ),
    "linear-4-gain": RopeScaling("linear", factor=4, attention_factor=1.2),
    "llama3-8": RopeScaling("llama3", factor=8),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def bake_and_verify(
    checkpoint: Path, out: Path, rope: RopeScaling | None, **options: Any
) -> Report:
    convert(ConvertOptions(checkpoint, out, rope, **options))
    return verify(out, checkpoint, tokens=options.get("tokens"))


#: Those whose gain is folded by default: the keys are proved too.
GAINS = ("yarn-2", "yarn-4", "yarn-7.5", "yarn-8-gain-1.5", "linear-4-gain")


@pytest.mark.parametrize(
    ("name", "encoding"),
    [*((name, None) for name in CASES), *((name, "keys") for name in GAINS)],
)
def test_logits_equal_transformers(
    checkpoint: Path, tmp_path: Path, name: str, encoding: str | None
) -> None:
    rope = CASES[name]
    report = bake_and_verify(checkpoint, tmp_path / "out.gguf", rope, encoding=encoding)
    assert report.passed, report
    logits = {c.quantity: c for c in report.checks if c.level == "logits"}
    assert all(c.value <= 1e-6 for c in logits.values())
    assert len(logits) == (
        1 if rope.method == "none" else 2
    )  # beyond the window wherever there is one


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "head-dim": {"head_dim": 24, "num_attention_heads": 8, "num_key_value_heads": 4},
    "no-gqa": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "base-500000": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}
    },
    "own-linear": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    },
    "own-yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 10000.0,
            "attention_factor": 1.05,
        },
        "max_position_embeddings": 256,
    },
    "own-llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 10000.0,
        },
        "max_position_embeddings": 256,
    },
}


@pytest.mark.parametrize("config", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_what_the_checkpoint_says_is_baked(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    """Shapes of the family, and each method as a checkpoint states it, without an option."""
    checkpoint = make_llama(tmp_path / "model", **config)
    report = bake_and_verify(checkpoint, tmp_path / "out.gguf", None)
    assert report.passed, report
    assert report.wanted_from.endswith("config.json")
    worst = max(c.value for c in report.checks if c.level == "logits")
    assert worst <= 1e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sharded_16_bit_checkpoints_lose_nothing(tmp_path: Path, dtype: str) -> None:
    """float32 holds every 16-bit value, so the written file equals the checkpoint exactly."""
    checkpoint = make_llama(tmp_path / "model", dtype=dtype, shard="200KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    report = bake_and_verify(
        checkpoint, tmp_path / "out.gguf", RopeScaling("yarn", factor=4), type="f32"
    )
    assert report.passed, report


def test_a_wrong_file_fails(checkpoint: Path, tmp_path: Path) -> None:
    """The reference has no scaling and the file has one: KL and table say so."""
    from dataclasses import replace

    from ggext.gguf.open import read_gguf
    from ggext.proof import logits
    from ggext.verify import expected_of

    out = tmp_path / "out.gguf"
    convert(
        ConvertOptions(
            checkpoint, out, RopeScaling("yarn", factor=4, attention_factor=1.0)
        )
    )
    wanted = expected_of(read_gguf(out), checkpoint)
    wrong_gain = replace(wanted, scaling=replace(wanted.scaling, attention_factor=None))
    checks, _ = logits.check_logits(
        read_gguf(out), checkpoint, wrong_gain, 128, None, print
    )
    assert [c.passed for c in checks] == [False, False]
    assert min(c.value for c in checks) > 1e-4


def test_a_file_of_another_converter_is_held_to_its_checkpoint(tmp_path: Path) -> None:
    """It has no recipe, and the keys that llama.cpp's own converter writes: table, graph and logits
    all see it."""
    from ggext.gguf.open import read_gguf
    from ggext.gguf.types import Field
    from ggext.gguf.writer import TensorToWrite, write_gguf

    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "attention_factor": 1.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    }
    checkpoint = make_llama(
        tmp_path / "model", rope_parameters=yarn, max_position_embeddings=256
    )
    right, wrong = tmp_path / "right.gguf", tmp_path / "wrong.gguf"
    convert(ConvertOptions(checkpoint, right))
    gguf = read_gguf(right)
    keys = {
        "type": "yarn",
        "factor": 4.0,
        "yarn_attn_factor": 1.0,
        "yarn_beta_fast": 16.0,
        "yarn_beta_slow": 2.0,
    }
    fields = {
        k: f
        for k, f in gguf.fields.items()
        if k not in ("ggext.recipe", "llama.rope.scaling.attn_factor")
    }
    fields |= {f"llama.rope.scaling.{k}": Field.of(v) for k, v in keys.items()}
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [gguf.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in gguf.tensors.values()
        if t.name != "rope_freqs.weight"
    ]
    write_gguf(wrong, fields, tensors)
    report = verify(wrong, checkpoint)
    assert {
        check.level for check in report.checks if check.required and not check.passed
    } == {
        "table",
        "graph",
        "logits",
    }
    assert "rope.scaling.yarn_attn_factor 1 is not read" in " ".join(
        check.why for check in report.checks
    )


@pytest.mark.shared("models/stories260K")
def test_a_real_model_at_four_times_its_context(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "stories260K"
    report = bake_and_verify(
        model, tmp_path / "out.gguf", RopeScaling("yarn", factor=4), type="f32"
    )
    assert report.passed
    assert report.context == 2048
    assert {c.quantity for c in report.checks if c.level == "logits"} == {
        "mean KL in the trained window, nats",
        "mean KL beyond it, nats",
    }
