"""The first hour, as transcripts: what a newcomer typed, and what the program says today.

The commands are those of the walk in docs/reports.md, on tiny models in place of SmolLM2 and Gemma.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_gguf import write_random

from ggext.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_random(tmp_path / "qwen.gguf", "qwen3")
    write_random(tmp_path / "llama.gguf", "llama")
    return tmp_path


def typed(line: str) -> str:
    """The output of a command line, standard output before errors, and its exit code if it is not
    0."""
    result = CliRunner().invoke(main, line.split()[1:])
    code = f"[exit code {result.exit_code}]\n" if result.exit_code else ""
    return result.stdout + result.stderr + code


@pytest.mark.usefixtures("here")
def test_a_file_that_is_safe_wherever_it_goes() -> None:
    first, *lines = typed("ggext convert qwen.gguf --yarn 4").splitlines()
    assert first.startswith("qwen.gguf: qwen3, ")
    assert lines[:3] == [
        "rope: yarn (factor 4, original context 64)",
        "context: 64 → 256 tokens",
        "encoding: folded, exact (frequencies 0.0e+00, gain 3.5e-09), safe to roll",
    ]
    assert lines[3].startswith("wrote qwen-yarn4.gguf (")
    assert lines[4:] == [
        "ready for: llama.cpp, llama-server, llama-cpp-python, ggext",
        "           Ollama and KoboldCpp roll their context: safe (folded)",
    ]


@pytest.mark.usefixtures("here")
def test_what_a_file_is_not_ready_for() -> None:
    output = typed("ggext convert llama.gguf --yarn 4 --encoding keys")
    assert output.endswith(
        "ready for: llama.cpp, llama-server, llama-cpp-python, ggext\n"
        "not for:   programs that roll a full context (Ollama, KoboldCpp, LM Studio's\n"
        "           rolling window): switch that off there, see docs/use-it-in.md\n"
        "           or write it with --encoding folded, which is safe\n"
    )
    in_place = typed("ggext convert llama.gguf --yarn 4 --in-place")
    assert (
        "not folded: a change in place leaves the query weights as they are\n"
        in in_place
    )


def test_advice_that_can_be_followed(here: Path) -> None:
    """B2: verify sent the owner of a Gemma file to --encoding folded, which refused and sent back to
    what had been done."""
    pytest.importorskip("llama_cpp")
    write_random(here / "gemma.gguf", "gemma3")
    reason = (
        "llama.cpp's gemma3 would give its sliding-window layers the gain that cancels YaRN's in "
        "the other layers"
    )
    baked = typed("ggext convert gemma.gguf g2.gguf --yarn 2")
    assert f"not folded: {reason}\n" in baked
    assert "--encoding folded" not in baked
    verified = typed("ggext verify g2.gguf")
    said = " ".join(verified.split())
    assert f"It cannot be folded: {reason}. So switch context shifts off" in said
    assert "tokens: exact in llama.cpp; do not let it roll" in said
    refused = typed("ggext convert gemma.gguf g3.gguf --yarn 2 --encoding folded")
    assert refused.startswith(
        f"ggext: the gain cannot be folded: {reason}; choose --encoding keys"
    )
    linear = typed("ggext convert gemma.gguf g4.gguf --linear 2")
    assert "safe to roll" in linear


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "ggext convert llama.gguf",
            "there is nothing to write: no scaling, type or encoding",
        ),
        (
            "ggext convert llama.gguf --target-context 32",
            "reaches 32 without a scaling",
        ),
        ("ggext convert llama.gguf --rope none", "there is nothing to write"),
        ("ggext convert llama.gguf --yarn 1", "a factor of 1 scales nothing"),
        (
            "ggext convert llama.gguf x.gguf --yarn 1000 --dry-run",
            "never shown to work beyond",
        ),
        ("ggext convert llama.gguf --target-context 0.25k", "64 → 256 tokens"),
        (
            "ggext plan llama.gguf -c 1k -ngl 0",
            "the file is made for 64 tokens: what stands",
        ),
        (
            "ggext verify llama.gguf --level table",
            "64 tokens: exact by what the file says",
        ),
        ("ggext inspect llama.gguf", "bars on a log scale, | is the 64 of training"),
        (
            "ggext inspect llama.gguf --plot x.png --diff qwen.gguf",
            "--plot draws one file",
        ),
        ("ggext list", "llama, 64 tokens"),
        ("ggext show qwen.gguf", "architecture   qwen3, 2 layers, 4 heads, 2 of keys"),
        ("ggext -V", "ggext 0."),
    ],
)
def test_what_was_asked_is_answered(line: str, words: str) -> None:
    output = typed(line)
    assert words in output
    assert "Traceback" not in output


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("--rope none", "past 64 tokens slow pairs turn further than training showed"),
        ("--yarn 4", "good: in 256 tokens no slow pair turns further than in training"),
        (
            "--linear 4",
            "good: in 256 tokens no slow pair turns further than in training",
        ),
        ("--ntk 4", "some slow pairs turn up to "),
    ],
)
def test_what_is_good_and_what_is_not(request_: str, words: str) -> None:
    """D: no sentence of inspect said it."""
    typed(f"ggext convert llama.gguf x.gguf {request_}")
    assert f"  {words}" in typed("ggext inspect x.gguf")


@pytest.mark.usefixtures("here")
def test_a_dry_run_needs_no_free_name() -> None:
    """C: it refused when OUT existed."""
    Path("x.gguf").touch()
    output = typed("ggext convert llama.gguf x.gguf --linear 2 --dry-run")
    assert output.endswith(
        "note: x.gguf exists; --force replaces it\ndry run: nothing was written\n"
    )
    refused = typed("ggext convert llama.gguf x.gguf --linear 2")
    assert "x.gguf exists" in refused
    assert refused.endswith("[exit code 1]\n")
