"""``ggext search`` on the embedded model: what it measures, keeps, refuses and writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from searched import SMALL, run

pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import ModelError, UsageError
from ggext.gguf.open import read_gguf
from ggext.gguf.rope import effective_table, recipe_of
from ggext.inspect import inspect
from ggext.proof.report import Check, Report
from ggext.rope.compare import compare
from ggext.rope.scaling import RopeScaling
from ggext.runtime.engine import CancelledError
from ggext.runtime.live_table import LiveTable
from ggext.search import Search, SearchOptions, search
from ggext.search.objective import Needles, ShortTexts
from ggext.verify import verify

pytestmark = pytest.mark.slow


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
