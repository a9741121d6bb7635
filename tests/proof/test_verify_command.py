"""`ggext verify` as a user calls it: reports, JSON, pictures, missing extras."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from rewriting import rewritten
from verified import ggext

from ggext.convert import ConvertOptions, convert
from ggext.errors import MissingExtraError, UsageError
from ggext.rope.scaling import RopeScaling
from ggext.verify import LEVELS, verify

pytest.importorskip("llama_cpp")


# the report


def test_one_report_on_the_screen(files: dict[str, Path]) -> None:
    result = ggext("verify", files["linear"], "--details")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    levels = [
        line.split()[0]
        for line in lines
        if line.split()[:1] and line.split()[0] in LEVELS
    ]
    assert levels == ["table"] * 3 + ["kernel"] * 2 + ["graph"] * 3 + ["shift"]
    assert "worst |Δ| of cos and sin / gain, by kernel" in lines
    assert any(
        line.startswith("1,048,576 ") and "beyond the context" in line for line in lines
    )
    assert lines[-1] == "1,024 tokens: exact in llama.cpp; safe to roll"


@pytest.mark.parametrize("name", ["linear", "yarn", "yarn-betas", "upstream"])
def test_a_line_a_level_of_80_columns(
    files: dict[str, Path], upstream: Path, name: str
) -> None:
    """newcomer.md, E: every row wrapped in the middle of a word; and no verdict."""
    path = upstream if name == "upstream" else files[name]
    result = ggext("verify", path)
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if "/" not in line) <= 80
    levels = [
        line.split()[0]
        for line in lines
        if line.split()[:1] and line.split()[0] in LEVELS
    ]
    assert set(levels) == set(LEVELS)
    assert result.exit_code == (1 if name == "upstream" else 0)
    verdicts = {
        "linear": "1,024 tokens: exact in llama.cpp; safe to roll",
        "yarn": "1,024 tokens: exact in llama.cpp; do not let it roll",
        "yarn-betas": "1,024 tokens: exact in llama.cpp; safe to roll",
    }
    if name != "upstream":
        assert lines[-1] == verdicts[name]
    assert json.loads(ggext("verify", path, "--json").stdout)["verdict"].split(":")[
        0
    ] == ("1,024 tokens")


def test_what_the_words_mean() -> None:
    result = ggext("verify", "--explain")
    assert result.exit_code == 0
    assert "**safe to roll, shift-safe**" in result.stdout
    page = ROOT / "docs" / "glossary.md"
    assert page.read_text() == result.stdout


# files from elsewhere


def foreign(files: dict[str, Path], name: str, out: Path, **changes: Any) -> Path:
    """The file without a recipe, as another program would have written it."""
    changes = {
        f"llama.{key.replace('__', '.')}": value for key, value in changes.items()
    }
    return rewritten(files[name], out, changes, drop=("ggext.recipe",))


@pytest.mark.parametrize(
    "name", ["none", "linear", "ntk", "yarn", "yarn-betas", "llama3"]
)
def test_a_file_from_elsewhere_is_held_to_its_own_keys(
    files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    report = verify(foreign(files, name, tmp_path / "x.gguf"))
    assert report.wanted_from == "its own keys"
    assert report.passed, report.checks
    assert report.verdict.startswith(f"{report.context:,} tokens: exact in llama.cpp; ")
    assert report.shift_safe is (name != "yarn")


def test_keys_that_llama_cpp_does_not_read_are_found(
    upstream: Path, tmp_path: Path
) -> None:
    """ "Is this YaRN file from the hub what llama.cpp executes?", without a recipe."""
    path = rewritten(upstream, tmp_path / "x.gguf", {}, drop=("ggext.recipe",))
    result = ggext("verify", path)
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "beta_fast 16 and beta_slow 2 wanted, 32 and 1 executed" in said
    assert "yarn_attn_factor 1 is not read by llama.cpp's llama" in said
    assert said.endswith("WRONG, the file does not say what its keys mean")


def test_a_known_model_is_held_to_what_its_authors_publish(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """A Llama 3.1 that lost its frequency factors says nothing wrong of itself."""
    published = {"rope__freq_base": 500000.0, "context_length": 131072}
    as_published = RopeScaling(
        "llama3",
        factor=8.0,
        original_context=8192,
        context=131072,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    model = foreign(
        files, "none", tmp_path / "base.gguf", **published, embedding_length=4096
    )
    report = verify(model, levels=["table"])
    assert not report.passed
    why = " ".join(check.why for check in report.checks)
    assert "Llama 3.1 and 3.3 is scaled by llama3 ×8 of 8,192 tokens" in why
    right = tmp_path / "right.gguf"
    convert(ConvertOptions(model, right, as_published))
    bare = rewritten(
        right, tmp_path / "bare.gguf", {}, drop=("ggext.recipe", "ggext.before")
    )
    report = verify(bare, levels=["table"])
    assert report.passed
    assert report.published.startswith("as the authors of Llama 3.1 and 3.3 publish it")
    other = tmp_path / "other.gguf"
    convert(
        ConvertOptions(
            model, other, RopeScaling("yarn", factor=4, original_context=32768)
        )
    )
    bare = rewritten(
        other, tmp_path / "bare2.gguf", {}, drop=("ggext.recipe", "ggext.before")
    )
    report = verify(bare, levels=["table"])
    assert report.passed
    assert "this file has a scaling of its own" in report.published


def test_json_has_every_figure(files: dict[str, Path]) -> None:
    report = json.loads(ggext("verify", files["yarn"], "--json").stdout)
    assert report["shift_safe"] is False
    assert len(report["pairs"]) == 16
    assert len(report["shifts"]) == 3
    assert report["nodes"][0]["parameters"]["freq_scale"] == 0.25
    assert {"kernel", "position", "error", "bound", "pair", "inside", "meaning"} == set(
        report["kernels"][0]
    )


@pytest.mark.parametrize("name", ["proof.png", "proof.svg"])
def test_plot(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    assert ggext("verify", files["yarn"], "--plot", tmp_path / name).exit_code == 0
    start = (tmp_path / name).read_bytes()[:100]
    assert start.startswith(b"\x89PNG") or b"<?xml" in start


def test_a_plot_of_the_table_alone(files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (
        ggext(
            "verify", files["yarn"], "--level", "table", "--plot", tmp_path / "p.png"
        ).exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "graf"], "unknown level graf: choose of table, kernel"),
        (["--level", "logits"], "needs --reference CHECKPOINT"),
        (["--plot", "proof.doc"], "must be one of .png"),
    ],
)
def test_usage(files: dict[str, Path], arguments: list[str], message: str) -> None:
    result = ggext("verify", files["none"], *arguments)
    assert result.exit_code == UsageError.exit_code
    assert message in result.stderr


# without extras


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr("ggext.runtime.llama._module", None)


@pytest.mark.usefixtures("without_llama_cpp")
def test_without_llama_cpp_the_rest_is_proved(files: dict[str, Path]) -> None:
    report = verify(files["yarn"])
    assert report.passed
    assert {check.level for check in report.checks} == {"table", "kernel"}
    assert {row.kernel for row in report.kernels} == {"ggext"}
    assert "what llama.cpp executes: not measured; " in report.notes[-1]
    assert 'pip install "ggext[run]"' in report.notes[-1]


@pytest.mark.usefixtures("without_llama_cpp")
@pytest.mark.parametrize(
    "options", [["--level", "table,graph"], ["--require-shift-safe"]]
)
def test_a_level_that_was_asked_for_needs_its_extra(
    files: dict[str, Path], options: list[str]
) -> None:
    result = ggext("verify", files["yarn"], *options)
    assert result.exit_code == MissingExtraError.exit_code
    assert 'pip install "ggext[run]"' in result.stderr.splitlines()[-1]


def test_a_plot_needs_its_extra(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = ggext("verify", files["yarn"], "--plot", tmp_path / "p.png")
    assert result.exit_code == MissingExtraError.exit_code
    assert 'pip install "ggext[plot]"' in result.stderr.splitlines()[-1]
    assert not (tmp_path / "p.png").exists()
