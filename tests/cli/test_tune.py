"""``ggext tune``, ``rope`` and ``export`` as their users type them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny import make_llama

from ggext.checkpoint.named import DEMO_MODEL
from ggext.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"Lily keeps {i}."}) for i in range(12))
    )
    return path


@pytest.fixture
def tuned_elsewhere(tmp_path: Path) -> Path:
    pytest.importorskip("peft", reason="the extra tune is not installed")
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    folder: Path = make_llama(
        tmp_path / "tuned", rope_parameters=rope, max_position_embeddings=256
    )
    return folder


def test_a_checkpoint_that_was_tuned_elsewhere_is_proved(tuned_elsewhere: Path) -> None:
    done = run("tune", tuned_elsewhere, "--yarn", 4, "--check")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("RoPE table in") == 2
    assert "max_position_embeddings is 256" in done.stdout


@pytest.mark.parametrize(
    ("change", "scaling", "message"),
    [
        ({}, ("--yarn", 8), "the RoPE table in config.json is not the one"),
        ({}, ("--linear", 4), "the RoPE table in config.json is not the one"),
        (
            {"max_position_embeddings": 64},
            ("--yarn", 4),
            "programs that go by it stop there",
        ),
        (
            {},
            ("--ntk", 4),
            "cannot be told from one that the model was pretrained with",
        ),
    ],
)
def test_one_that_says_something_else_is_not(
    tuned_elsewhere: Path,
    change: dict[str, Any],
    scaling: tuple[Any, ...],
    message: str,
) -> None:
    path = tuned_elsewhere / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    done = run("tune", tuned_elsewhere, *scaling, "--check")
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a scaling"),
        (("--yarn", 4, "--full", "--lora", 4), "--full and --lora exclude each other"),
        (("--yarn", 4, "--stages", "a"), "no list of factors"),
        (("--yarn", 4, "--linear", 4), "are different scalings"),
        (("--yarn", 4, "--text", "nowhere.txt"), "nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    arguments: tuple[Any, ...], message: str
) -> None:
    pytest.importorskip("peft", reason="the extra tune is not installed")
    done = run("tune", "demo", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_without_the_extra_it_says_what_to_install(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    done = run("tune", "demo", "--yarn", 4, "--text", texts)
    assert done.exit_code == 1
    assert 'pip install "ggext[tune]"' in done.stderr


def test_a_gguf_file_is_sent_to_export(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra tune is not installed")
    run("convert", "demo", tmp_path / "demo.gguf")
    done = run("tune", tmp_path / "demo.gguf", "--yarn", 4, "--text", texts)
    assert done.exit_code == 1
    assert "make a checkpoint of it: ggext export" in done.stderr


def test_export_says_what_it_made(tmp_path: Path) -> None:
    run("convert", "demo", tmp_path / "demo.gguf")
    done = run("export", tmp_path / "demo.gguf", tmp_path / "back")
    assert done.exit_code == 0, done.stderr
    assert f"wrote {tmp_path / 'back'}: 649,472 numbers in float32" in done.stdout
    assert "tokenizer: as llama.cpp's on" in done.stdout


def emitted(program: str, *options: object) -> Result:
    done = run("rope", "demo", "--yarn", 4, "--emit", program, *options)
    assert done.exit_code == 0, done.stderr
    return done


def test_transformers_gets_everything() -> None:
    values = json.loads(emitted("transformers", "--attention-factor", 1.2).stdout)
    assert values["max_position_embeddings"] == 1024
    assert values["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "attention_factor": 1.2,
    }


def test_what_transformers_gets_is_the_wanted_table() -> None:
    transformers = pytest.importorskip(
        "transformers", reason="reference is not installed"
    )
    from ggext.rope.scaling import RopeGeometry, RopeScaling
    from ggext.tune.tables import WantedRope, prove_model

    text = emitted("transformers", "--beta-fast", 16, "--no-truncate").stdout
    config = transformers.AutoConfig.from_pretrained(DEMO_MODEL, **json.loads(text))
    scaling = RopeScaling("yarn", 4.0, 256, beta_fast=16.0, truncate=False)
    rope = WantedRope(scaling, RopeGeometry(32, 32, 1000.0, "norm", 256))
    prove_model(
        "in transformers", transformers.AutoModelForCausalLM.from_config(config), rope
    )


@pytest.mark.parametrize("program", ["vllm", "sglang"])
def test_a_gain_becomes_a_factor_on_their_own(program: str) -> None:
    """0.1 ln 4 + 1 = 1.13863, which they multiply by attn_factor."""
    done = emitted(program, "--attention-factor", 1.2)
    assert '"attn_factor": 1.0538986' in done.stdout
    assert "attention_factor" not in done.stdout
    assert "attn_factor" not in emitted(program).stdout


@pytest.mark.parametrize(
    ("program", "reads"), [("vllm", True), ("sglang", False), ("mlx", False)]
)
def test_what_is_not_read_is_said_with_what_it_changes(
    program: str, reads: bool
) -> None:
    done = emitted(program, "--no-truncate")
    said = (
        "does not read truncate: its frequencies are off by up to 0.093" in done.stderr
    )
    assert said != reads


def test_mlx_has_the_base_at_the_top() -> None:
    values = json.loads(emitted("mlx").stdout)
    assert values["rope_theta"] == 1000.0
    assert "rope_theta" not in values["rope_scaling"]


def test_ntk_is_a_larger_base_everywhere() -> None:
    for program in ("transformers", "vllm", "sglang", "mlx"):
        done = run("rope", "demo", "--ntk", 4, "--emit", program)
        assert "4387.29" in done.stdout, program
        assert "factor" not in done.stdout


def test_a_table_for_kinds_of_layers_is_for_transformers_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra reference is not installed")
    from tiny import make_model

    folder = make_model(
        tmp_path / "gemma", "gemma3_text", head_dim=32, query_pre_attn_scalar=32
    )
    done = run("rope", folder, "--yarn", 4, "--emit", "vllm")
    assert done.exit_code == 1
    assert "is not known here; ask for transformers" in done.stderr
    values = json.loads(
        run("rope", folder, "--yarn", 4, "--emit", "transformers").stdout
    )
    assert values["rope_parameters"]["sliding_attention"]["rope_type"] == "default"
