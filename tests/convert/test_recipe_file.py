"""A request as a TOML file: the same request comes back, and what is not meant is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.convert.recipe_file import Request, read_request, to_toml, write_request
from ggext.errors import CheckpointError, OutputError, RopeError
from ggext.rope.scaling import RopeScaling

REQUESTS = {
    "none": Request(RopeScaling("none")),
    "yarn": Request(RopeScaling("yarn", factor=4), encoding="folded", type="Q4_K_M"),
    "types": Request(
        RopeScaling("linear", factor=2),
        type="q8_0",
        tensor_types=("output=f16", 'a\\"*=bf16'),
    ),
    "target": Request(
        RopeScaling("yarn", original_context=32768, truncate=False),
        target_context=131072,
    ),
    "longrope": Request(
        RopeScaling(
            "longrope",
            factor=32.0,
            short_factors=(1.0, 1.25) * 12,
            long_factors=(1.08, 64.84) * 12,
        )
    ),
    "llama3": Request(
        RopeScaling(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            context=131072,
        )
    ),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_comes_back(tmp_path: Path, request_: Request) -> None:
    write_request(tmp_path / "r.toml", request_)
    assert read_request(tmp_path / "r.toml") == request_


def test_what_a_recipe_looks_like() -> None:
    request = Request(
        RopeScaling("yarn", factor=4.5, attention_factor=1.0, truncate=False),
        encoding="tensor",
    )
    assert to_toml(request) == (
        '# ggext convert MODEL OUT --recipe THIS_FILE\nformat = 1\nencoding = "tensor"\n\n[rope]\nmethod = "yarn"\n'
        "factor = 4.5\nattention_factor = 1.0\ntruncate = false\n"
    )


number = st.floats(1e-30, 1e30)


@given(
    factor=st.floats(1, 1e30),
    gain=st.none() | number,
    low=st.none() | number,
    context=st.none() | st.integers(1, 1 << 40),
)
def test_every_number_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    factor: float,
    gain: float | None,
    low: float | None,
    context: int | None,
) -> None:
    scaling = RopeScaling(
        "llama3",
        factor=factor,
        attention_factor=gain,
        low_freq_factor=low,
        context=context,
    )
    path = tmp_path_factory.mktemp("recipe") / "r.toml"
    write_request(path, Request(scaling))
    assert read_request(path).rope == scaling


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format = 2", "format is 2; this version reads 1"),
        ("", "format is None"),
        ("format = 1", r"the table \[rope\] is missing"),
        ("format = 1\nrope = 3", r"the table \[rope\] is missing"),
        ("format = 1\nextra = 1\n[rope]\nmethod = 'yarn'", "unknown key extra"),
        (
            "format = 1\n[rope]\nmethod = 'magic'",
            "method is 'magic'; known: none, linear",
        ),
        ("format = 1\n[rope]\nfactor = 2.0", "method is None"),
        ("format = 1\n[rope]\nmethod = 'yarn'", "needs a factor"),
        (
            "format = 1\n[rope]\nmethod = 'yarn'\nfactor = 'four'",
            "factor is 'four', but must be a number",
        ),
        (
            "format = 1\n[rope]\nmethod = 'yarn'\nfactor = nan",
            "must be a finite number",
        ),
        (
            "format = 1\n[rope]\nmethod = 'yarn'\nfactor = 4\nbeta_fats = 3",
            "unknown key beta_fats",
        ),
        (
            "format = 1\n[rope]\nmethod = 'linear'\nfactor = 4\nbeta_fast = 3",
            "does not use beta_fast",
        ),
        (
            "format = 1\n[rope]\nmethod = 'yarn'\nfactor = 4\ntruncate = 0",
            "true or false",
        ),
        (
            "format = 1\n[rope]\nmethod = 'yarn'\nfactor = 4\ncontext = 1.5",
            "whole number of tokens",
        ),
        (
            "format = 1\n[rope]\nmethod = 'longrope'\nfactor = 4\nlong_factors = 3",
            "must be a list",
        ),
        (
            "format = 1\n[rope]\nmethod = 'longrope'\nfactor = 4\nlong_factors = ['a']",
            "long_factors is .'a',",
        ),
        (
            "format = 1\ntarget_context = 0\n[rope]\nmethod = 'yarn'",
            "target_context is 0",
        ),
        (
            "format = 1\ntarget_context = 9\n[rope]\nmethod = 'yarn'\nfactor = 2",
            "exclude each other",
        ),
        (
            "format = 1\nencoding = 'morse'\n[rope]\nmethod = 'yarn'\nfactor = 2",
            "encoding is 'morse'; known: keys",
        ),
        ("format = 1\ntype = 8\n[rope]\nmethod = 'yarn'\nfactor = 2", "type is 8"),
        (
            "format = 1\ntensor_types = ['a=f16', 1]\n[rope]\nmethod = 'none'",
            "must be a list of strings",
        ),
        ("format = ", "is not a TOML file"),
        ("\xff", "is not a TOML file"),
        ("a = " + "[" * 5000, "is not a TOML file"),
        ("# " + "x" * (1 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_what_is_not_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, "latin-1")
    with pytest.raises(RopeError, match=message) as caught:
        read_request(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_there(tmp_path: Path) -> None:
    write_request(tmp_path / "r.toml", REQUESTS["none"])
    with pytest.raises(OutputError, match="use force=True"):
        write_request(tmp_path / "r.toml", REQUESTS["yarn"])
    write_request(tmp_path / "r.toml", REQUESTS["yarn"], force=True)
    assert read_request(tmp_path / "r.toml") == REQUESTS["yarn"]
    with pytest.raises(RopeError, match="does not exist; name a scaling too"):
        read_request(tmp_path / "none.toml")


# on the command line


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["convert", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_gguf import write_random

    return write_random(tmp_path_factory.mktemp("models") / "model.gguf", "llama")


def test_a_recipe_is_written_and_repeated(model: Path, tmp_path: Path) -> None:
    recipe, first, second = (
        tmp_path / "r.toml",
        tmp_path / "1.gguf",
        tmp_path / "2.gguf",
    )
    options: list[Any] = [
        "--target-context",
        200,
        "--beta-fast",
        16,
        "--no-truncate",
        "--encoding",
        "folded",
    ]
    result = ggext(model, first, *options, "--recipe", recipe)
    assert result.exit_code == 0, result.output
    assert f"wrote {recipe}" in result.output
    assert read_request(recipe) == Request(
        RopeScaling("yarn", beta_fast=16, truncate=False),
        target_context=200,
        encoding="folded",
    )
    assert ggext(model, second, "--recipe", recipe).exit_code == 0
    assert first.read_bytes() == second.read_bytes()


def test_the_command_line_goes_before_the_recipe(model: Path, tmp_path: Path) -> None:
    from ggext.gguf.open import read_gguf

    recipe, out = tmp_path / "r.toml", tmp_path / "out.gguf"
    write_request(recipe, Request(RopeScaling("yarn", factor=4), encoding="folded"))
    assert ggext(model, out, "--recipe", recipe, "--encoding", "keys").exit_code == 0
    assert json.loads(read_gguf(out).get("ggext.recipe"))["encoding"] == "keys"


def test_types_of_single_tensors_are_repeated(model: Path, tmp_path: Path) -> None:
    from ggext.gguf.open import read_gguf
    from ggext.gguf.types import BF16, Q8_0

    recipe, out = tmp_path / "r.toml", tmp_path / "out.gguf"
    types = ("--tensor-type", "*.ffn_down=bf16", "--tensor-type", "*.ffn_up=f16")
    result = ggext(
        model,
        tmp_path / "first.gguf",
        "--yarn",
        4,
        "--type",
        "q8_0",
        *types,
        "--recipe",
        recipe,
    )
    assert result.exit_code == 0, result.output
    assert (
        ggext(
            model, out, "--recipe", recipe, "--tensor-type", "*.ffn_up=bf16"
        ).exit_code
        == 0
    )
    tensors = read_gguf(out).tensors
    assert [
        tensors[f"blk.0.ffn_{part}.weight"].type for part in ("gate", "up", "down")
    ] == [
        Q8_0,
        BF16,
        BF16,
    ]


def test_a_recipe_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "r.toml", tmp_path / "out.gguf"
    write_request(recipe, REQUESTS["none"])
    result = ggext(model, out, "--yarn", 4, "--recipe", recipe)
    assert result.exit_code == 1
    assert f"{recipe} exists; use --force" in result.stderr
    assert not out.exists()
    assert "needs a factor" not in result.output
    missing = ggext(model, out, "--recipe", tmp_path / "no.toml")
    assert "does not exist; name a scaling too" in missing.stderr


def test_all_parameters_have_an_option(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    ggext(
        model,
        tmp_path / "a.gguf",
        "--yarn",
        4,
        "--mscale",
        0.7,
        "--mscale-all-dim",
        1.1,
        "--recipe",
        recipe,
    )
    assert read_request(recipe).rope.given() == {
        "factor": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.1,
    }
    arguments = [
        "--llama3",
        8,
        "--low-freq-factor",
        2,
        "--high-freq-factor",
        5,
        "--recipe",
        recipe,
        "--force",
    ]
    assert ggext(model, tmp_path / "b.gguf", *arguments).exit_code == 0
    assert read_request(recipe).rope.given() == {
        "factor": 8.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 5.0,
    }


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "factor = " + "9" * 5_000,  # more digits than Python reads
        ".".join(["a"] * 100_000) + " = 1",  # tomllib takes the square of their number
        " . ".join(["a"] * 100_000) + " = 1",
        "[" + ".".join(["a"] * 100_000) + "]",
        "\0\1",
    ],
    ids=["nested", "digits", "dotted", "dotted, spaces", "a table", "binary"],
)
def test_a_stranger_s_recipe_ends_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(
        RopeError, match="is not a TOML file that can be read"
    ) as refused:
        read_request(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a/" + "b" * 5_000, "b" * 5_000])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="too long for the name of a file"):
        convert(ConvertOptions(Path(name), tmp_path / "out.gguf"))
