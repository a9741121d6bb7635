"""Models that do not rotate: converted and run like others, RoPE's options refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from family_rows import ROWS
from tiny import make_model

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import ModelError, RopeError
from ggext.gguf.open import read_gguf
from ggext.inspect import inspect
from ggext.plan import PlanOptions, plan
from ggext.rope.capabilities import ROTATES, unrotated
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("transformers")


@pytest.fixture(
    scope="module",
    params=[
        "bloom",
        "gpt2",
        "gpt_bigcode",
        "granitemoehybrid-mamba",
        "mpt",
        "nemotron_h",
    ],
)
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A checkpoint, and the GGUF file of it."""
    folder = tmp_path_factory.mktemp(request.param)
    row = ROWS[request.param]
    checkpoint = make_model(folder / "model", row.model_type, **row.config)
    convert(ConvertOptions(checkpoint, folder / "model.gguf"))
    return checkpoint, folder / "model.gguf"


@pytest.mark.parametrize("from_gguf", [False, True])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rope": RopeScaling("yarn", factor=4)}, "yarn scaling cannot be given"),
        ({"target_context": 4096}, "a target context of 4096 cannot be given"),
        ({"attention_factor": 1.2}, r"an attention factor of 1\.2 cannot be given"),
        ({"encoding": "folded"}, "an encoding cannot be given"),
    ],
)
def test_what_concerns_rope_is_refused_by_name(
    models: Any, tmp_path: Path, options: dict[str, Any], words: str, from_gguf: bool
) -> None:
    with pytest.raises(RopeError, match=f"{words}, because this model does not rotate"):
        convert(ConvertOptions(models[from_gguf], tmp_path / "out.gguf", **options))
    assert not (tmp_path / "out.gguf").exists()


def test_the_command_says_so(models: Any, tmp_path: Path) -> None:
    checkpoint, gguf = (str(path) for path in models)
    out = str(tmp_path / "out.gguf")
    refused = CliRunner().invoke(main, ["convert", checkpoint, out, "--yarn", "4"])
    assert refused.exit_code == 1
    assert "does not rotate" in refused.output
    done = CliRunner().invoke(main, ["convert", gguf, out, "--type", "F16"])
    assert done.exit_code == 0, done.output
    assert "rope: none, this model does not rotate" in done.output
    shown = CliRunner().invoke(main, ["inspect", out])
    assert "rope          none, this model does not rotate" in shown.output


def test_no_key_of_rope_is_written(models: Any) -> None:
    gguf = read_gguf(models[1])
    assert unrotated(gguf.arch, gguf.arch_keys())
    found = [key for key in gguf.fields if "rope" in key or "recipe" in key]
    assert found == [f"{gguf.arch}.{ROTATES}"] * (gguf.arch == "granitehybrid")
    assert inspect(models[1]).shift_safe is (gguf.arch not in ("gpt2", "starcoder"))


def test_there_is_a_plan(models: Any) -> None:
    assert plan(models[1], PlanOptions()).made_for == 64


def test_verify_needs_the_reference(models: Any) -> None:
    pytest.importorskip("llama_cpp")
    with pytest.raises(RopeError, match="there is no table to verify; reference="):
        verify(models[1])
    report = verify(models[1], models[0])
    assert report.passed
    assert [check.level for check in report.checks] == ["logits"]


def test_learned_positions_are_a_limit(models: Any) -> None:
    """llama.cpp would read beyond its table and end the process."""
    pytest.importorskip("llama_cpp")
    from ggext.runtime.engine import Model, Session, SessionOptions

    with Model.open(models[1]) as model:
        options = SessionOptions(n_ctx=256)
        if model.architecture in ("gpt2", "starcoder"):
            with pytest.raises(ModelError, match="learned positions for 64 tokens"):
                Session(model, options)
            options = SessionOptions(n_ctx=64)
        with Session(model, options) as session:
            session.evaluate(list(range(2, 60)))
            assert session.used == 58
