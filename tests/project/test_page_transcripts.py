"""Transcripts in the docs: each is what the program prints now, or says when it was printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ROOT

from ggext.cli import main

_BLOCK = re.compile(r"(?:<!-- (.*) -->\n)?```console\n(.*?)```", re.DOTALL)
_DATED = re.compile(r"printed on 20\d\d-\d\d-\d\d")
#: A page whose transcripts are all of one day says so in a sentence.
_PAGE_DATED = re.compile(r"output of 20\d\d-\d\d-\d\d")
_NUMBER = re.compile(r"\d[\d,.]*(?:e[-+]?\d+)?")
#: The transcript that is tried below, on the embedded model.
TRIED = (ROOT / "docs" / "verify.md", "ggext verify demo-yarn4.gguf --reference demo")


def transcripts(page: Path) -> list[tuple[str, list[str]]]:
    """Of each block with output: the comment above it, and its lines."""
    blocks = _BLOCK.findall(page.read_text("utf-8"))
    split = [(note, block.splitlines()) for note, block in blocks]
    return [
        (note, lines)
        for note, lines in split
        if any(line.strip() and not line.lstrip().startswith("$") for line in lines)
    ]


@pytest.mark.parametrize(
    "page",
    [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"],
    ids=lambda page: page.name,
)
def test_a_transcript_is_tried_or_dated(page: Path) -> None:
    if _PAGE_DATED.search(" ".join(page.read_text("utf-8").split())):
        return
    wrong = [
        lines[0]
        for note, lines in transcripts(page)
        if not _DATED.search(note)
        and not (page == TRIED[0] and f"$ {TRIED[1]}" in lines)
    ]
    assert not wrong, f"{page.name}: {wrong}"


@pytest.mark.slow
def test_the_transcript_of_verify_is_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its numbers, which are of the processor."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("transformers")
    page, command = TRIED
    (lines,) = (lines for _, lines in transcripts(page) if f"$ {command}" in lines)
    monkeypatch.chdir(tmp_path)
    printed = ""
    for line in (line for line in lines if line.startswith("$ ")):
        printed = CliRunner().invoke(main, shlex.split(line[2:])[1:]).stdout
    expected = "\n".join(lines[lines.index(f"$ {command}") + 1 :])
    assert _NUMBER.sub("N", printed).strip() == _NUMBER.sub("N", expected).strip()
