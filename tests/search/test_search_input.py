"""`ggext search`: its texts, its files, what is refused, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from searched import SMALL, run

pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.convert import ConvertOptions, convert
from ggext.errors import GgextError, OutputError, UsageError
from ggext.quality import texts
from ggext.search import Search, SearchOptions, search

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one document that names each thing again, long after the first time."""
    from random import Random

    from ggext.data import demo_language as language

    rng = Random(5)
    parts = []
    for _ in range(16):
        facts = language.facts(rng, 20)
        parts.append(language.document(rng, facts, 300))
        parts += [language.answer(fact.key, fact.place) for fact in facts]
    folder = tmp_path_factory.mktemp("texts")
    (folder / "inner").mkdir()
    (folder / "inner" / "book.txt").write_text(" ".join(parts))
    (folder / "picture.png").write_bytes(b"no text")
    return folder


def test_key_tokens_of_own_documents(plain: Path, book: Path) -> None:
    options = SearchOptions(
        512, texts=(book,), **{**SMALL, "evaluations": 2, "held_out": 5}
    )
    with Search(plain, options) as running:
        running.run()
        found = running.result()
    assert found.objective == "key tokens"
    assert 0 < found.evaluations[0].loss < 2
    assert "of 1 documents: they are taken for independent" in found.notes[-1]


def test_too_little_text_is_said(plain: Path, book: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"hold \d texts of 2,048 tokens, and a search needs 6"
    ):
        Search(plain, SearchOptions(2048, texts=(book,), **SMALL))
    with pytest.raises(
        UsageError, match=r"held_out is 50, but the documents hold \d+ texts of"
    ):
        Search(plain, SearchOptions(512, texts=(book,), **{**SMALL, "held_out": 50}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UsageError, match=r"empty holds no document \(\.txt, \.text, \.md\)"
    ):
        Search(plain, SearchOptions(512, texts=(tmp_path / "empty",), **SMALL))
    (tmp_path / "dull.txt").write_text("Tom sleeps. " * 3000)
    with pytest.raises(
        UsageError, match="have no key token: nothing in 512 tokens needs more"
    ):
        search(plain, SearchOptions(512, texts=(tmp_path / "dull.txt",), **SMALL))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_context": 256},
            "was trained on 256 tokens and reaches 256 without a scaling",
        ),
        ({"target_context": 0}, "target_context is 0, but must be at least 1"),
        ({"evaluations": 41}, "evaluations is 41, but must be from 2 to 40"),
        ({"held_out": 1}, "held_out is 1, but must be at least 2"),
        ({"budget": 0.0}, "the budget is 0.0 seconds"),
        ({"budget": 1e-6}, "s here, and the budget is 0 s: give it the time"),
        ({"form": "sonnet"}, "form is 'sonnet'"),
        ({"texts": (Path("/nowhere/book.txt"),)}, "/nowhere/book.txt cannot be read"),
        ({"out": Path("/nowhere/out.gguf")}, "the folder /nowhere does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    options: dict[str, Any], message: str, plain: Path
) -> None:
    small = {} if "budget" in options else SMALL
    with pytest.raises(GgextError, match=message) as raised:
        Search(
            plain, SearchOptions(**{"target_context": 512, **small, **options})
        ).close()
    assert "\n" not in str(raised.value)


def test_a_file_to_start_from_is_unscaled_and_a_gguf(
    plain: Path, demo_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(GgextError, match=r"is scaled already.* --rope none"):
        Search(demo_gguf, SearchOptions(4096, **SMALL))
    with pytest.raises(
        UsageError, match="demo is a checkpoint, and a search runs a GGUF file"
    ):
        Search(Path("demo"), SearchOptions(4096, **SMALL))
    with pytest.raises(GgextError, match=r"nowhere\.gguf does not exist"):
        Search(tmp_path / "nowhere.gguf", SearchOptions(4096, **SMALL))
    out = tmp_path / "there.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(
        OutputError, match=r"there\.gguf exists; use force=True to replace it"
    ):
        Search(plain, SearchOptions(512, out=out, **SMALL))
    assert out.read_bytes() == b"mine"


def test_a_quantized_file_is_searched_too(plain: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "q8.gguf"
    convert(ConvertOptions(plain, quantized, type="q8_0"))
    found = search(quantized, SearchOptions(512, **{**SMALL, "evaluations": 2}))
    assert len(found.evaluations) == 2


def test_a_vocabulary_that_spells_no_needle_is_told_of_texts(tmp_path: Path) -> None:
    from tiny_gguf import write_random

    model = write_random(
        tmp_path / "model.gguf", "llama", extra_keys={"llama.context_length": 256}
    )
    with pytest.raises(UsageError, match=r"or give documents to search on \(texts\)"):
        Search(model, SearchOptions(512, **SMALL))


def test_json_is_all_that_is_printed(plain: Path) -> None:
    sizes = (
        "--evaluations",
        "2",
        "--training",
        "1",
        "--held-out",
        "2",
        "--threads",
        "1",
    )
    done = run(plain, "-c", "512", *sizes, "--json")
    assert done.exit_code == 0
    values = json.loads(done.stdout)
    assert values["accepted"] is False
    assert values["yarn"] == values["evaluations"][0]["point"]
    assert values["yarn_scaling"]["context"] == 512
    assert "tokens, about" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_keeps_what_was_measured(plain: Path, tmp_path: Path) -> None:
    kept, out = tmp_path / "run.jsonl", tmp_path / "out.gguf"
    sizes = [
        "--evaluations",
        "40",
        "--training",
        "40",
        "--held-out",
        "40",
        "--threads",
        "1",
    ]
    arguments = ["-c", "2k", "-o", out, "--resume", kept, *sizes]
    code = "from ggext.cli import main; main()"
    command = [sys.executable, "-c", code, "search", plain, *arguments]
    with subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "tokens, about" in process.stderr.readline()
        while len(kept.read_bytes().splitlines()) < 4:
            assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        printed, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "256 → 2,048 tokens" in printed
    assert "YaRN stays" not in printed
    assert f"stopped before the end; --resume {kept} goes on from here" in err
    assert "Traceback" not in err
    assert not out.exists()
    assert len(kept.read_bytes().splitlines()) >= 4


def test_documents_of_a_folder_come_by_name(book: Path) -> None:
    assert texts.documents_in(book) == (book / "inner" / "book.txt",)
    assert texts.documents_in(book / "inner" / "book.txt") == (
        book / "inner" / "book.txt",
    )
