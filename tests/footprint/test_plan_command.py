"""`ggext plan` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_gguf
from click.testing import CliRunner
from planned import GIB, path_weights
from sized_gguf import SHAPES, write_sized

from ggext.cli import main
from ggext.footprint import defaults, machine
from ggext.plan import Plan

pytestmark = pytest.mark.usefixtures("two_cores")


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["plan", *arguments])
    return done.exit_code, done.output


def test_the_command_line_tells_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "physical_cores", lambda: 4)
    monkeypatch.setattr(machine, "free_memory", lambda: 8 * GIB)
    monkeypatch.chdir(tmp_path)
    write_sized(tmp_path / "m.gguf", SHAPES["llama-3.2-1b"])
    code, text = run("m.gguf", "--context", "32768", "--gpu-layers", "0")
    assert code == 0
    assert text == (
        "m.gguf: llama, 16 layers, made for 131,072 tokens\n"
        "context 32,768 tokens, 128 at a time, kv f16, flash attention off\n"
        "\n"
        "                     RAM\n"
        "weights          2.3 GiB\n"
        "KV cache         1.0 GiB\n"
        "computing      533.5 MiB\n"
        "logits         501.0 KiB\n"
        "total            3.8 GiB\n"
        "free             8.0 GiB\n"
        "\n"
        "it fits; memory holds up to 171,520 tokens, the file is made for 131,072\n"
    )


def test_a_context_that_the_file_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """newcomer.md, B3: "it fits", and the largest read as an invitation."""
    monkeypatch.setattr(machine, "free_memory", lambda: 16 * GIB)
    monkeypatch.chdir(tmp_path)
    write_sized(tmp_path / "m.gguf", SHAPES["llama-3.2-1b"])
    code, text = run("m.gguf", "--context", "256k", "--gpu-layers", "0")
    assert code == 0
    assert (
        "it fits in memory, but the file is made for 131,072 tokens: what stands\n"
        "past those is misread. ggext convert m.gguf --target-context 262144\n"
        "makes one that reaches them; memory holds up to " in text
    )


def test_the_command_line_says_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "physical_cores", lambda: 2)
    monkeypatch.setattr(machine, "free_memory", lambda: 4 * GIB)
    path = write_sized(tmp_path / "m.gguf", SHAPES["gemma-3-4b"])
    code, text = run(str(path), "--gpu-layers", "0")
    assert code == 1
    assert (
        "it does not fit, nor does any context: take a smaller model or quantization\n"
        in text
    )
    monkeypatch.setattr(machine, "free_memory", lambda: 10 * GIB)
    code, text = run(str(path), "--gpu-layers", "0", "--no-flash-attention")
    assert (code, "q8_0" in text) == (1, False)
    code, text = run(str(path), "--gpu-layers", "0", "--swa", "full")
    assert code == 1
    assert (
        "it does not fit; memory holds up to 16,896 tokens\nwith --kv q8_0: 31,744 tokens\n"
        in text
    )
    assert "29 layers see a sliding window; their cache keeps every token\n" in text
    code, text = run(str(path), "--gpu-layers", "0")
    assert code == 1
    assert "it does not fit; memory holds up to 72,448 tokens\n" in text
    assert "window copies  696.0 MiB\n" in text
    assert (
        "29 layers see a sliding window; their cache keeps the window's tokens\n"
        in text
    )


def test_an_architecture_that_was_not_measured_is_called_so(tmp_path: Path) -> None:
    path = tiny_gguf.write_random(tmp_path / "tiny.gguf", "arcee")
    code, text = run(str(path), "--gpu-layers", "0")
    assert code == 0
    assert "the architecture arcee was not held to llama.cpp" in text


def test_json_has_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "physical_cores", lambda: 4)
    monkeypatch.setattr(machine, "free_memory", lambda: 8 * GIB)
    path = write_sized(tmp_path / "m.gguf", SHAPES["llama-3.2-1b"])
    code, text = run(
        str(path), "--context", "auto", "--kv", "q8_0", "--gpu-layers", "0", "--json"
    )
    found = json.loads(text)
    assert code == 0
    assert found["fits"] is True
    assert found["context"] == {
        "tokens": 131072,
        "batch": 256,
        "kv_type": "q8_0",
        "flash_attention": True,
        "whole_windows": True,
        "sequences": 1,
    }
    assert found["ram"]["total"] == sum(
        found["ram"][part] for part in ("weights", "cache", "compute", "output")
    )
    assert found["free"] == {"ram": 8 * GIB, "gpu": None}
    assert set(found) == set(Plan.__dataclass_fields__) | {"fits"}


def test_a_plan_needs_neither_llama_cpp_nor_the_tensors(tmp_path: Path) -> None:
    """The file's 116 GiB are a hole; the package is made impossible to import."""
    path = write_sized(tmp_path / "m.gguf", SHAPES["deepseek-v3-8-layers"])
    assert path.stat().st_size > 100 * GIB
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from pathlib import Path; from ggext.plan import plan\n"
        f"found = plan(Path({str(path)!r})); print(found.ram.weights, found.gpu.total)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(path_weights(path)), "0"]
