"""``--via-llama-cpp``: a family that ggext does not know, through a stand-in of llama.cpp's
converter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ggext.converters import known_families
from tiny import make_llama

from ggext.cli import main
from ggext.gguf.open import read_gguf

pytest.importorskip("transformers")

#: Does what the options say, with a file that was converted before; fails as upstream does where
#: one is missing.
SCRIPT = """
import argparse, shutil, sys
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype")
given = parser.parse_args()
here = Path(__file__).parent
if given.model.name == "silent":
    sys.exit(0)
if not (here / f"{given.outtype}.gguf").exists():
    print("INFO: loading", file=sys.stderr)
    raise NotImplementedError("Model Mystery is not supported")
shutil.copy(here / f"{given.outtype}.gguf", given.outfile)
"""


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def mystery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_llama(tmp_path_factory.mktemp("models") / "mystery")
    config = folder / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"model_type": "mystery"})
    )
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama.cpp")
    model = make_llama(folder / "model")
    (folder / "convert_hf_to_gguf.py").write_text(SCRIPT)
    for kind, made in (("auto", "auto"), ("f16", "f16")):
        assert (
            ggext("convert", model, folder / f"{made}.gguf", "--type", kind).exit_code
            == 0
        )
    return folder


def test_the_error_says_the_way_out(mystery: Path, tmp_path: Path) -> None:
    result = ggext("convert", mystery, tmp_path / "x.gguf")
    assert result.exit_code == 1
    assert "model_type 'mystery' is not a family that ggext converts; " in result.stderr
    assert "--via-llama-cpp FOLDER runs llama.cpp's own converter" in result.stderr
    count = f"docs/families.md lists the {len(known_families())} that are"
    assert count in result.stderr


def test_names_that_are_near_are_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma5"}')
    result = ggext("convert", tmp_path, tmp_path / "x.gguf")
    assert result.exit_code == 1
    assert "; near: gemma, gemma4, gemma3, gemma2" in result.stderr


def test_its_file_is_baked_and_verified(
    mystery: Path, checkout: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    out = tmp_path / "out" / "x.gguf"
    out.parent.mkdir()
    result = ggext(
        "convert",
        mystery,
        out,
        "--yarn",
        4,
        "--type",
        "f16",
        "--via-llama-cpp",
        checkout,
    )
    assert result.exit_code == 0, result.output
    assert (
        f"{mystery}: llama, 21 tensors" in result.stdout
    )  # not llama.cpp's file, which is gone
    assert "context: 64 → 256 tokens" in result.output
    assert "checks within tolerance" in result.output
    gguf = read_gguf(out)
    assert gguf.get("llama.rope.scaling.factor") == 4.0
    assert gguf.tensors["blk.0.attn_q.weight"].type == 1
    assert list(out.parent.iterdir()) == [out]


def test_the_name_is_the_checkpoint_s(
    mystery: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ggext("convert", mystery, "--via-llama-cpp", checkout)
    assert result.exit_code == 0, result.output
    assert "not verified: no scaling was asked for" in result.output
    assert (tmp_path / "mystery.gguf").exists()
    result = ggext(
        "convert", mystery, "--via-llama-cpp", checkout, "--yarn", 2, "--dry-run"
    )
    assert "dry run: nothing was written" in result.output
    assert {p.name for p in tmp_path.iterdir()} == {"home", "mystery.gguf"}


def test_failures(mystery: Path, checkout: Path, tmp_path: Path) -> None:
    def refused(message: str, *arguments: object, code: int = 1) -> None:
        result = ggext("convert", *arguments)
        assert result.exit_code == code, result.output
        assert message in result.stderr.splitlines()[-1]
        assert not [
            p
            for p in tmp_path.iterdir()
            if p.suffix == ".gguf" or p.name.startswith(".ggext")
        ]

    out = tmp_path / "x.gguf"
    last = "failed (exit code 1): NotImplementedError: Model Mystery is not supported"
    refused(last, mystery, out, "--type", "bf16", "--via-llama-cpp", checkout)
    (tmp_path / "silent").mkdir()
    refused(
        "failed (exit code 0): it said nothing",
        tmp_path / "silent",
        out,
        "--via-llama-cpp",
        checkout,
    )
    refused(
        "there is no convert_hf_to_gguf.py",
        mystery,
        out,
        "--via-llama-cpp",
        tmp_path,
        code=2,
    )
    refused(
        "converts a checkpoint's folder",
        checkout / "auto.gguf",
        out,
        "--via-llama-cpp",
        checkout,
        code=2,
    )
    refused(
        "does not exist; make it first",
        mystery,
        tmp_path / "no" / "x.gguf",
        "--via-llama-cpp",
        checkout,
    )
