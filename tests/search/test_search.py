"""``ggext search`` on the embedded model: what it measures, keeps, refuses and writes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.checkpoint.named import DEMO_MODEL
from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import GgextError, ModelError, OutputError, UsageError
from ggext.gguf.open import read_gguf
from ggext.gguf.rope import effective_table, recipe_of
from ggext.inspect import inspect
from ggext.proof.report import Check, Report
from ggext.quality import texts
from ggext.rope.compare import compare
from ggext.rope.scaling import RopeScaling
from ggext.runtime.engine import CancelledError
from ggext.runtime.live_table import LiveTable
from ggext.search import Search, SearchOptions, search
from ggext.search.objective import Needles, ShortTexts
from ggext.verify import verify

SMALL = {"evaluations": 4, "training": 1, "held_out": 2, "threads": 1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as it was trained, on 256 tokens."""
    out = tmp_path_factory.mktemp("search") / "plain.gguf"
    convert(ConvertOptions(DEMO_MODEL, out, RopeScaling("none")))
    return out


@pytest.fixture
def prefers_a_wider_ramp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text likes a slower table with a little more gain, at no price; nothing is read."""

    def loss(needles: Needles, number: int) -> float:
        scaling = needles.live.scaling
        assert scaling is not None
        assert scaling.factor is not None
        assert scaling.attention_factor is not None
        return (
            0.2 / scaling.factor
            + abs(1.2 - scaling.attention_factor)
            + 0.001 * (number % 3)
        )

    monkeypatch.setattr(Needles, "loss", loss)
    monkeypatch.setattr(ShortTexts, "loss", lambda *_: 2.0)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["search", *map(str, arguments)])


def test_where_yarn_is_saturated_it_stays(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    found = search(plain, SearchOptions(512, out=out, **SMALL))
    assert not found.accepted
    assert found.out is None
    assert not out.exists()
    assert 1 < len(found.evaluations) <= 4
    assert found.evaluations[0].point == found.yarn
    assert found.evaluations[0].loss < 0.01
    assert list(tmp_path.glob("*.gguf")) == []


def test_the_loss_is_that_of_a_baked_file(plain: Path, tmp_path: Path) -> None:
    """Of YaRN's table, on the same text, with llama.cpp's own keys."""
    from random import Random

    from ggext.quality.needles import answer_loss, sample_maker
    from ggext.quality.prompts import PromptMaker
    from ggext.runtime.engine import Model, Session, SessionOptions

    found = search(plain, SearchOptions(1024, **{**SMALL, "evaluations": 2}))
    baked = tmp_path / "yarn.gguf"
    convert(
        ConvertOptions(plain, baked, RopeScaling("yarn", factor=4), encoding="keys")
    )
    with (
        Model.open(baked) as model,
        Session(model, SessionOptions(1024, threads=1)) as session,
    ):
        prompts = PromptMaker(model)
        sample = sample_maker(prompts, needles=16)(
            "multikey", 1024, Random("search 0 1024 0")
        )
        assert len(sample.questions) == 16
        assert found.evaluations[0].loss == answer_loss(session, prompts, sample)


@pytest.mark.usefixtures("prefers_a_wider_ramp")
def test_what_is_accepted_is_written_verified_and_told(
    plain: Path, tmp_path: Path
) -> None:
    out, card = tmp_path / "out.gguf", tmp_path / "card.md"
    sizes = (
        "--evaluations",
        "12",
        "--training",
        "2",
        "--held-out",
        "6",
        "--threads",
        "1",
    )
    done = run(plain, "-c", "512", "-o", out, *sizes, "--card", card)
    assert done.exit_code == 0, done.output
    assert "better than YaRN" in done.output
    assert f"wrote {out}" in done.output
    recipe = recipe_of(read_gguf(out))
    assert recipe is not None
    assert recipe.searched is not None
    assert recipe.source == "ggext search"
    assert recipe.searched.held_out == 6
    assert recipe.searched.loss < recipe.searched.yarn_loss
    assert recipe.searched.high < 0
    assert compare(
        recipe.table(), effective_table(read_gguf(out), by_ggext=True)
    ).is_exact
    assert inspect(out).context == 512
    shown = CliRunner().invoke(main, ["inspect", str(out)]).output
    assert "(asked by ggext search)" in shown
    assert "searched      loss on needles" in shown
    report = verify(out, levels=["table", "graph"])
    assert report.passed
    assert report.wanted_from == "recipe in the file (by ggext search, seed 0)"
    assert "This file has the best table." in card.read_text("utf-8")
    # What was searched is replaced like any other scaling.
    convert(ConvertOptions(out, tmp_path / "back.gguf", RopeScaling("none")))
    assert inspect(tmp_path / "back.gguf").method == "none"


@pytest.mark.usefixtures("prefers_a_wider_ramp")
def test_a_table_that_costs_on_short_texts_is_not_followed(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger factor is liked by the long texts, and costs 1 % on short ones."""
    used: list[RopeScaling | None] = []

    def use(live: LiveTable, scaling: RopeScaling | None) -> None:
        live.scaling = scaling
        used.append(scaling)

    def loss(*_: object) -> float:
        assert used[-1] is not None
        assert used[-1].factor is not None
        return 2.0 if used[-1].factor <= 2 else 2.02

    monkeypatch.setattr(LiveTable, "use", use)
    monkeypatch.setattr(ShortTexts, "loss", loss)
    sizes = {"evaluations": 12, "training": 2, "held_out": 6, "threads": 1}
    options = SearchOptions(512, out=tmp_path / "out.gguf", **sizes)
    with Search(plain, options) as running:
        running.run()
        found = running.result()
    refused = [one for one in found.evaluations if one.point.overshoot > 1]
    assert refused
    assert {one.loss for one in refused} == {math.inf}
    assert found.best.overshoot <= 1
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["evaluations"]


@pytest.mark.usefixtures("prefers_a_wider_ramp")
def test_a_stop_before_the_file_is_in_place_leaves_none(
    plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    sizes = {"evaluations": 12, "training": 2, "held_out": 6, "threads": 1}
    with Search(plain, SearchOptions(512, out=out, **sizes)) as running:
        running.run()
        assert running.result().accepted
        running.stop()
        with pytest.raises(
            CancelledError, match=r"out\.gguf is not written: the search was stop"
        ):
            running.bake()
    assert not out.exists()


@pytest.mark.usefixtures("prefers_a_wider_ramp")
def test_what_fails_its_verification_is_not_written(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggext.search import run as running

    def fails(path: Path) -> Report:
        wrong = Check("table", "frequency error, relative", 1.0, 1e-6, "")
        return Report(str(path), "", {}, 0, [wrong])

    monkeypatch.setattr(running, "verify", fails)
    out = tmp_path / "out.gguf"
    sizes = {"evaluations": 12, "training": 2, "held_out": 6, "threads": 1}
    with pytest.raises(
        ModelError, match=r"out\.gguf is not written: baked, the table fails table"
    ):
        search(plain, SearchOptions(512, out=out, **sizes))
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]


def test_the_same_seed_gives_the_same_and_a_resumed_run_too(
    plain: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "run.jsonl"
    options = SearchOptions(512, **{**SMALL, "evaluations": 6})
    whole = search(plain, options)
    with Search(plain, options, kept) as running:
        running.run(lambda progress: running.stop() if progress.done == 3 else None)
        part = running.result()
    assert part.interrupted
    assert not part.accepted
    assert part.reason == "the search was stopped before its end"
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 + 3
    kept.write_bytes(
        b"".join(lines) + lines[-1][:20]
    )  # a crash in the middle of a line
    # The plan is the kept one: nothing of it is named again.
    with Search(plain, SearchOptions(512, threads=1), kept) as running:
        assert running.known == 3
        assert (running.plan.evaluations, running.plan.training) == (6, 1)
        steps: list[int] = []
        running.run(lambda progress: steps.append(progress.done))
        again = running.result()
    assert again == whole
    assert len(kept.read_bytes().splitlines()) == 2 + 3 + len(steps)
    other = search(plain, SearchOptions(512, seed=1, **SMALL))
    assert other.evaluations[0].loss != whole.evaluations[0].loss
    with pytest.raises(UsageError, match="is a run with target 512, not 1024"):
        search(plain, SearchOptions(1024, **SMALL), partial=kept)


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
