"""The inputs of ../shared/cases, each with what is right (its README.md)."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ggext.cli import main
from ggext.gguf.open import read_gguf

pytestmark = pytest.mark.shared("cases/make.py", "models/stories260K")

#: Case → words of the refusal.
REFUSED = {
    "A02-old-shards-left": "is read before model.safetensors.index.json",
    "A05-consolidated-only": "Mistral's own format",
    "B03-unmerged-peft": "an adapter that is not merged",
    "B12-reward-model": "a classifier and not a language model",
    "C02-mlx-quantized": "implies [64, 172]",  # no whole groups: MLX makes none such,
    "C04-adapter-folder": "is a LoRA adapter of 'some/base-model'",
    "C04b-adapter-with-config": "is a LoRA adapter of 'some/base-model'",
}
#: Case → a note of the conversion, empty for none of its own.
CONVERTED = {
    "A06-shards-no-index": "the 2 shards are read without it",
    "A08-tensor-twice": "with the same values",
    "B01-no-model-prefix": "whose names lack model.",
    "B02-orig-mod": "_orig_mod.",
    "B03c-lora-left-beside": "are of an adapter and not in the file",
    "B05-ddp-module": "module.",
    "C01-quantization-config-left": "the tensors are believed",
    "C04c-adapter-beside-model": "the adapter is not in the file",
    "C05-moe-fused": "",
    "C05a-moe-original-names": "",
    "D00-plain": "",
    "D01-attn-factor": "attn_factor 0.8782488562869419, which transformers does not read",
    "D02-readme-yarn-40960": "131,072 tokens",
    "D02b-readme-yarn-40960-v5": "131,072 tokens",
    "D03c-both-same-but-spelling": "",
    "D11-default-with-factor-1": "",
    "G02-mistral3-tied-by-top": "",
    "G03-mistral3-default": "",
    "G05-mistral-small-default": "",
    "G08-moe-saved-own-format": "",
    "G11-qwen3-base-model-saved": "whose names lack model.",
    "J03-phi3-longrope-v5": "",
}
CONTEXTS = dict.fromkeys(
    ("D01-attn-factor", "D02-readme-yarn-40960", "D02b-readme-yarn-40960-v5"), 131072
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from paths import SHARED

    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("cases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["make.py", str(out)])
        patch.setenv("CASES_OUT", str(out))
        patch.setenv("CASES_BASE", "")
        runpy.run_path(str(SHARED / "cases" / "make.py"))
    return out


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", REFUSED)
def test_refused(cases: Path, tmp_path: Path, name: str) -> None:
    result = ggext("convert", cases / name, tmp_path / "x.gguf")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert REFUSED[name] in result.stderr


@pytest.mark.parametrize("name", CONVERTED)
def test_converted(
    cases: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(
        "GGEXT_FIRST_LOAD", raising=False
    )  # with llama.cpp's word on each header
    out = tmp_path / "x.gguf"
    result = ggext("convert", cases / name, out)
    assert result.exit_code == 0, result.output
    assert CONVERTED[name] in result.output
    gguf = read_gguf(out)
    assert gguf.get(f"{gguf.arch}.context_length") == CONTEXTS.get(
        name, gguf.get(f"{gguf.arch}.context_length")
    )


def test_what_is_asked_for(cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    result = ggext("convert", cases / "D00-plain", out, "--yarn", 4)
    assert "--original-context 32768" in result.output
    for asked in (("--yarn", 4), ("--rope", "none")):
        assert (
            ggext(
                "convert", cases / "D01-attn-factor", out, *asked, "--force"
            ).exit_code
            == 0
        )
    parts = cases / "gguf" / "split-empty-first"
    assert ggext("convert", parts, out, "--yarn", 4, "--force").exit_code == 0
    wrong = ggext(
        "convert", cases / "gguf" / "u64-context.gguf", out, "--yarn", 4, "--force"
    )
    assert "has the wrong type uint64" in wrong.stderr
    store = shutil.copytree(cases / "gguf" / "ollama", tmp_path / "ollama")
    blob = next((store / "models" / "blobs").iterdir())
    in_place = ggext("convert", blob, "--in-place", "--yarn", 4)
    assert "where its name is its checksum" in in_place.stderr
