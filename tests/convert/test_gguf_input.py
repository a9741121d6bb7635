"""`ggext convert`, `inspect` and `verify` on GGUF files that are there already."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import Result
from converted import assert_refused, bake, ggext
from tiny import make_llama

from ggext.gguf.open import read_gguf

pytest.importorskip("transformers")


def test_a_gguf_file_is_rebaked_not_stacked(checkpoint: Path, tmp_path: Path) -> None:
    plain = bake(checkpoint, tmp_path / "plain.gguf")
    yarn = bake(
        tmp_path / "plain.gguf",
        tmp_path / "yarn.gguf",
        "--yarn",
        4,
        "--encoding",
        "keys",
    )
    assert yarn.get("llama.context_length") == 256
    asked = ["--yarn", 2, "--beta-slow", 0.1, "--encoding", "tensor"]
    betas = bake(tmp_path / "yarn.gguf", tmp_path / "betas.gguf", *asked)
    assert betas.get("llama.context_length") == 128
    assert "llama.rope.scaling.factor" not in betas.fields
    back = bake(tmp_path / "betas.gguf", tmp_path / "back.gguf", "--rope", "none")
    assert {k: v for k, v in back.fields.items() if k != "ggext.recipe"} == {
        k: v for k, v in plain.fields.items() if k != "ggext.recipe"
    }
    assert list(back.tensors) == list(plain.tensors)
    for name in plain.tensors:
        assert bytes(back.tensor_data(name)) == bytes(plain.tensor_data(name))


def test_ntk_on_a_gguf_file_can_be_undone(checkpoint: Path, tmp_path: Path) -> None:
    """NTK changes the base in the file; the recipe remembers the model's own."""
    ntk = bake(checkpoint, tmp_path / "ntk.gguf", "--ntk", 4)
    assert ntk.get("llama.rope.freq_base") > 10000
    back = bake(tmp_path / "ntk.gguf", tmp_path / "back.gguf", "--rope", "none")
    assert back.get("llama.rope.freq_base") == 10000
    assert back.get("llama.context_length") == 64


def test_a_gguf_file_without_request_is_copied(
    checkpoint: Path, tmp_path: Path
) -> None:
    yarn = bake(checkpoint, tmp_path / "yarn.gguf", "--yarn", 4)
    copy = bake(tmp_path / "yarn.gguf", tmp_path / "copy.gguf")
    assert copy.fields == yarn.fields


def test_frequency_factors_of_unknown_origin_need_an_original_context(
    checkpoint: Path, tmp_path: Path
) -> None:
    from ggext.gguf.types import Field
    from ggext.gguf.writer import TensorToWrite, write_gguf

    llama3 = bake(checkpoint, tmp_path / "llama3.gguf", "--llama3", 8)
    ours = ("ggext.recipe", "llama.rope.scaling.original_context_length")
    fields = {k: f for k, f in llama3.fields.items() if k not in ours}
    fields["llama.context_length"] = Field.of(512)
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [llama3.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in llama3.tensors.values()
    ]
    foreign = tmp_path / "foreign.gguf"
    write_gguf(foreign, fields, tensors)
    assert_refused(
        ggext("convert", foreign, tmp_path / "x.gguf", "--yarn", 4),
        "--original-context",
    )
    gguf = bake(foreign, tmp_path / "x.gguf", "--yarn", 4, "--original-context", 64)
    assert gguf.get("llama.context_length") == 256
    assert "rope_freqs.weight" not in gguf.tensors


def test_replacing_a_scaling_is_told(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    folder = make_llama(tmp_path / "own", rope_parameters=rope)
    result = ggext("convert", folder, tmp_path / "out.gguf", "--yarn", 8)
    assert (
        "the source's own linear scaling by 4 is replaced, not added to"
        in result.output
    )
    assert read_gguf(tmp_path / "out.gguf").get("llama.context_length") == 512


def test_inspect_says_what_became_of_each_frequency(
    checkpoint: Path, tmp_path: Path
) -> None:
    bake(checkpoint, tmp_path / "out.gguf", "--yarn", 4)
    result = ggext("inspect", tmp_path / "out.gguf")
    assert result.exit_code == 0
    assert "256 tokens, extended from 64 (×4)" in result.output
    assert "yarn ×4 as folded" in result.output
    assert "interpolated by 4" in result.output
    values = json.loads(ggext("inspect", tmp_path / "out.gguf", "--json").output)
    assert values["rope"]["attention_factor"] == pytest.approx(1 + 0.1 * math.log(4))
    assert {p["treatment"] for p in values["pairs"]} == {
        "kept",
        "blended",
        "interpolated",
    }


@pytest.mark.parametrize("name", ["table.png", "table.svg"])
def test_inspect_plots(checkpoint: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    bake(checkpoint, tmp_path / "out.gguf", "--yarn", 4)
    assert (
        ggext("inspect", tmp_path / "out.gguf", "--plot", tmp_path / name).exit_code
        == 0
    )
    start = (tmp_path / name).read_bytes()[:100]
    assert start.startswith(b"\x89PNG") or b"<?xml" in start
    assert_refused(
        ggext("inspect", tmp_path / "out.gguf", "--plot", tmp_path / "t.doc"),
        "must be one of .png",
        2,
    )


def test_verify_holds_a_file_to_its_recipe(checkpoint: Path, tmp_path: Path) -> None:
    """Level 1 and 2 need no llama.cpp; a key that someone changed is found."""
    from dataclasses import replace

    from ggext.gguf.types import Field
    from ggext.gguf.writer import TensorToWrite, write_gguf

    gguf = bake(checkpoint, tmp_path / "out.gguf", "--yarn", 4)
    result = ggext("verify", tmp_path / "out.gguf")
    assert result.exit_code == 0, result.output
    assert "tokens: exact " in result.output

    def changed(key: str, value: object) -> Result:
        fields = dict(gguf.fields)
        fields[key] = (
            replace(fields[key], value=value) if key in fields else Field.of(value)
        )
        tensors = [
            TensorToWrite(
                t.name,
                t.shape,
                t.type,
                t.nbytes,
                lambda t=t: [gguf.tensor_data(t.name)],
            )  # type: ignore[misc]
            for t in gguf.tensors.values()
        ]
        write_gguf(tmp_path / "changed.gguf", fields, tensors)
        return ggext("verify", tmp_path / "changed.gguf", "--json")

    for key, value in (
        ("llama.rope.scaling.factor", 8.0),
        ("llama.rope.scaling.attn_factor", 1.1386),
        ("llama.rope.scaling.type", "linear"),
        ("llama.rope.freq_base", 10001.0),
        ("llama.context_length", 64),
    ):
        result = changed(key, value)
        assert result.exit_code == 1, key
        assert json.loads(result.stdout)["passed"] is False
    assert_refused(changed("llama.rope.scaling.type", "magic"), "'magic'")


def test_verify_without_a_recipe_holds_a_file_to_its_own_keys(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A file without weights cannot be run, and is read all the same."""
    from ggext.gguf.writer import write_gguf

    gguf = bake(checkpoint, tmp_path / "out.gguf")
    fields = {k: f for k, f in gguf.fields.items() if k != "ggext.recipe"}
    write_gguf(tmp_path / "foreign.gguf", fields, [])
    result = ggext("verify", tmp_path / "foreign.gguf", "--level", "table")
    assert result.exit_code == 0, result.output
    assert "held to its own keys" in " ".join(result.output.split())
