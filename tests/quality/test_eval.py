"""``ggext eval`` and ``ggext.evaluate`` on the embedded model."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggext.cli import main

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.cli.eval_table import as_table  # noqa: E402
from ggext.convert import ConvertOptions, convert  # noqa: E402
from ggext.errors import GgextError, ModelError, UsageError  # noqa: E402
from ggext.gguf.open import read_gguf  # noqa: E402
from ggext.quality.plan import Plan  # noqa: E402
from ggext.quality.run import Evaluation, Progress, evaluate  # noqa: E402
from ggext.quality.settings import EvalOptions  # noqa: E402
from ggext.rope.scaling import RopeScaling  # noqa: E402

SMALL = EvalOptions(lengths=(256, 1024), trials=2, documents=2, tries=("none",))


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def report(demo_gguf: Path) -> Any:
    return evaluate(demo_gguf, SMALL)


def test_yarn_reaches_further_than_none(report: Any) -> None:
    yarn, none = report.settings
    assert (yarn.scaling, none.scaling) == ("as baked: yarn ×8", "none")
    assert (yarn.trained, yarn.context) == (256, 2048)
    at = {one.length: one for one in yarn.scores}
    assert at[1024].score.value >= 0.9
    assert none.scores[1].score.value <= 0.4
    assert (at[1024].score.items, at[1024].score.units) == (10, 2)
    assert at[1024].score.low < 0.6  # two texts prove little
    assert [depth[1] for depth in at[1024].depths] == [2] * 5
    assert yarn.bands[-1].perplexity.value < none.bands[-1].perplexity.value - 1
    assert (yarn.bands[0].start, yarn.bands[-1].end) == (0, 1024)
    assert abs(yarn.price.value) < 0.1
    assert yarn.price.units == 8
    assert none.price is None
    lost = [one for one in report.differences if one.what == "perplexity"]
    assert [(one.start, one.end) for one in lost] == [(0, 256), (256, 512), (512, 1024)]


def test_the_same_seed_gives_the_same_report(report: Any, demo_gguf: Path) -> None:
    again = evaluate(demo_gguf, SMALL)
    assert json.dumps(again.as_dict()) == json.dumps(report.as_dict())
    other = evaluate(
        demo_gguf, EvalOptions(lengths=(256,), trials=1, documents=1, seed=1)
    )
    assert other.settings[0].scores[0] != report.settings[0].scores[0]


def test_a_run_that_was_stopped_goes_on(
    report: Any, demo_gguf: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "run.jsonl"
    with Evaluation([demo_gguf], SMALL, kept) as evaluation:

        def stop_soon(progress: Progress) -> None:
            if progress.done == 6:
                evaluation.stop()

        evaluation.run(stop_soon)
        partly = evaluation.report()
        assert evaluation.interrupted
        assert partly.interrupted
        assert 0 < len(evaluation.missing) == len(evaluation.plan.items) - 6
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    kept.write_bytes(
        b"".join(lines) + lines[-1][:40]
    )  # a crash in the middle of a line
    steps: list[Progress] = []
    with Evaluation([demo_gguf], SMALL, kept) as evaluation:
        assert len(evaluation.missing) == len(evaluation.plan.items) - 6
        evaluation.run(steps.append)
        assert evaluation.report().as_dict() == report.as_dict()
    assert steps[-1].seconds_left >= 0
    assert len(kept.read_bytes().splitlines()) == 1 + len(evaluation.plan.items)


@pytest.mark.parametrize(
    "content", [b"", b"not json\n", b'{"format": "another"}\n', b"\xff\xfe"]
)
def test_a_file_that_is_no_partial_run_stays(
    content: bytes, demo_gguf: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "run.jsonl"
    kept.write_bytes(content)
    if not content:  # an empty file is as good as none
        Evaluation([demo_gguf], SMALL, kept).close()
        return
    with pytest.raises(UsageError, match=r"run\.jsonl is no partial run of ggext eval"):
        Evaluation([demo_gguf], SMALL, kept)
    assert kept.read_bytes() == content


def test_a_partial_run_of_another_seed_is_refused(
    demo_gguf: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "run.jsonl"
    Evaluation([demo_gguf], EvalOptions(seed=3), kept).close()
    before = kept.read_bytes()
    with pytest.raises(UsageError, match="is a run with seed 3, not 0"):
        Evaluation([demo_gguf], SMALL, kept)
    kept.write_bytes(before + b'{"setting": 1}\n')
    with pytest.raises(UsageError, match=r"is damaged \(line 2\)"):
        Evaluation([demo_gguf], EvalOptions(seed=3), kept)


def test_cache_types_policies_and_divergence_go_in_one_table(demo_gguf: Path) -> None:
    options = EvalOptions(
        lengths=(256, 512),
        trials=1,
        documents=1,
        kv_types=("f16", "q4_0"),
        key_tokens=True,
        divergence=True,
        protocol="yarn",
    )
    found = evaluate([demo_gguf], options)
    full, rounded = found.settings
    assert (full.kv_type, rounded.kv_type) == ("f16", "q4_0")
    assert full.divergence == ()
    assert full.rotated == rounded.rotated == ()  # its heads have 32 values
    assert "q4_0: nothing rotated" in as_table(found)
    assert rounded.divergence[-1].kl.value > 1e-5
    assert 0.5 < rounded.divergence[-1].same_top.value <= 1
    assert full.key_tokens is not None
    assert full.key_tokens.short == 128
    assert full.key_tokens.scored == 512 - 128
    assert [(one.start, one.end) for one in full.key_tokens.bands] == [
        (0, 256),
        (256, 512),
    ]
    assert sum(one.count for one in full.key_tokens.bands) == full.key_tokens.count
    assert full.protocol is not None
    assert (full.protocol.protocol, full.protocol.count) == ("yarn", 1)
    streaming = evaluate(
        demo_gguf,
        EvalOptions(
            lengths=(3000,), trials=1, documents=1, when_full=("stream", "recompute")
        ),
    )
    assert [one.when_full for one in streaming.settings] == ["stream", "recompute"]
    assert all(one.scores[0].score.items == 5 for one in streaming.settings)


@pytest.mark.parametrize("disabled", [False, True], ids=["rotated", "disabled"])
def test_a_quantized_cache_that_llama_cpp_rotates_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disabled: bool
) -> None:
    """With heads of 64 values, unless the environment forbids it; then a partial run is another."""
    pytest.importorskip("transformers")
    from tiny import make_llama

    path = tmp_path / "heads.gguf"
    folder = make_llama(tmp_path / "model", head_dim=64)
    convert(ConvertOptions(folder, path, RopeScaling("none")))
    kept = tmp_path / "run.jsonl"
    options = EvalOptions(
        lengths=(64,), trials=1, documents=1, tasks=(), kv_types=("f16", "q8_0")
    )
    if disabled:
        Evaluation([path], options, kept).close()
        monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
        with pytest.raises(
            UsageError, match="is a run with LLAMA_ATTN_ROT_DISABLE None, not '1'"
        ):
            Evaluation([path], options, kept)
    plain, rounded = evaluate(path, options).settings
    assert plain.rotated == ()
    assert rounded.rotated == (() if disabled else ("keys", "values"))


def test_the_price_is_what_transformers_free_arithmetic_gives(
    report: Any, demo_gguf: Path
) -> None:
    """exp of the mean paired difference of the mean losses, minus 1."""
    from ggext.gguf.open import read_gguf
    from ggext.quality.perplexity import nll
    from ggext.quality.settings import tried_scaling
    from ggext.quality.texts import little_piece
    from ggext.runtime.engine import Model, Session
    from ggext.runtime.scaled import scaling_overrides

    overrides = scaling_overrides(read_gguf(demo_gguf), tried_scaling("none", 2048))
    losses = []
    for given in ({}, overrides):
        with Model.open(demo_gguf, overrides=given) as model, Session(model) as session:
            texts = [little_piece(model, 256, i, 0).tokens for i in range(8)]
            losses.append(np.array([nll(session, text).mean() for text in texts]))
    expected = np.exp((losses[0] - losses[1]).mean()) - 1
    assert report.settings[0].price.value == pytest.approx(expected, abs=1e-4)


class _Page(HTMLParser):
    """Tags that open and close in turn, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.charts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]
        self.charts += tag == "svg"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_opens_offline(demo_gguf: Path, tmp_path: Path) -> None:
    page, card = tmp_path / "report.html", tmp_path / "card.md"
    arguments = (
        "--lengths",
        "256,512",
        "--trials",
        "1",
        "--documents",
        "1",
        "--try",
        "none",
    )
    done = run(demo_gguf, *arguments, "--html", page, "--card", card)
    assert done.exit_code == 0, done.output
    assert "effective context, score at least 85.6 % (RULER)" in done.output
    assert "about" in done.output
    text = page.read_text("utf-8")
    parsed = _Page()
    parsed.feed(text)
    assert parsed.open == []
    assert parsed.loads == []
    assert parsed.charts == 5  # scores, two grids, perplexity, RoPE
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in text
    assert "&quot;method&quot;: &quot;yarn&quot;" in text  # the recipe
    assert "## How far it reaches" in card.read_text("utf-8")


def test_convert_writes_the_card_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggext.quality import run as running

    small = EvalOptions(lengths=(256, 512), trials=1, documents=1)
    monkeypatch.setattr(running, "EvalOptions", lambda: small)
    out, card = tmp_path / "out.gguf", tmp_path / "card.md"
    done = CliRunner().invoke(
        main, ["convert", "demo", str(out), "--yarn", "2", "--card", str(card)]
    )
    assert done.exit_code == 0, done.output
    text = card.read_text("utf-8")
    assert "| out.gguf, as baked: yarn ×2 |" in text
    assert "256 | 512 |" in text
    missing = tmp_path / "nowhere" / "card.md"
    done = CliRunner().invoke(
        main,
        [
            "convert",
            "demo",
            str(tmp_path / "b.gguf"),
            "--yarn",
            "2",
            "--card",
            str(missing),
        ],
    )
    assert done.exit_code == 1
    assert "the folder" in done.output
    assert not (tmp_path / "b.gguf").exists()


def test_json_is_all_that_is_printed(demo_gguf: Path) -> None:
    arguments = ("--lengths", "256", "--trials", "1", "--documents", "1", "--json")
    done = run(demo_gguf, *arguments)
    values = json.loads(done.stdout)
    assert values["settings"][0]["scores"][0]["score"]["items"] == 5
    assert "seconds" not in done.stdout
    assert "NaN" not in done.stdout
    assert "Infinity" not in done.stdout


def test_a_budget_picks_what_fits(demo_gguf: Path) -> None:
    def planned(seconds: float) -> Plan:
        with Evaluation([demo_gguf], EvalOptions(budget=seconds)) as evaluation:
            return evaluation.plan

    small, large = planned(0.5), planned(1e6)
    assert large.trials == 100
    assert small.trials < large.trials
    assert large.lengths == (256, 512, 1024, 2048)
    assert small.tokens < large.tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lengths": (4096,)},
            r"a length of 4,096 is beyond the 2,048 tokens .* is made for",
        ),
        ({"lengths": (10,)}, "a length is 10, but must be at least 64 tokens"),
        (
            {"tasks": ("variables",)},
            "the task variables needs words that the vocabulary",
        ),
        (
            {"tasks": ("juggling",)},
            "the task 'juggling' is unknown; known are multikey, ",
        ),
        (
            {"tasks": ("questions",)},
            "the task questions and a file of questions go together",
        ),
        ({"tries": ("yarn",)}, "'yarn' needs a factor, such as yarn:4"),
        ({"tries": ("longrope:4",)}, "'longrope:4' is no method to try"),
        ({"tries": ("ntk:0.5",)}, "the factor must be more than 1"),
        ({"kv_types": ("q3_9",)}, "the kv type 'q3_9' is unknown"),
        (
            {"form": "sonnet"},
            "the form 'sonnet' is unknown; known are template, raw, auto",
        ),
        ({"texts": (Path("/nowhere/book.txt"),)}, r"/nowhere/book.txt cannot be read"),
        ({"budget": 0.0}, "the budget is 0.0 seconds"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    options: dict[str, Any], message: str, demo_gguf: Path
) -> None:
    with pytest.raises(GgextError, match=message) as raised:
        evaluate(demo_gguf, EvalOptions(**{"trials": 1, "documents": 1, **options}))
    assert "\n" not in str(raised.value)


def test_a_text_that_is_too_short_is_said(demo_gguf: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("Tom keeps the map outside. " * 20)
    options = {"texts": (book,), "tasks": (), "lengths": (1024,)}
    with pytest.raises(
        UsageError, match=r"the longest text has \d+ tokens, too few for a length"
    ):
        evaluate(demo_gguf, EvalOptions(documents=1, **options))  # type: ignore[arg-type]
    found = evaluate(demo_gguf, EvalOptions(**options))  # type: ignore[arg-type]
    assert found.settings[0].bands == () or found.settings[0].bands[-1].end <= 256
    assert "perplexity by position is not measured" in found.notes[-1]
    with pytest.raises(
        UsageError, match="llama-perplexity's protocol needs two chunks, 2,048"
    ):
        evaluate(demo_gguf, EvalOptions(protocol="llama.cpp", **options))  # type: ignore[arg-type]


def test_a_context_beyond_the_memory_is_refused_with_its_size(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggext.runtime import capacity

    monkeypatch.setattr(capacity, "free_memory", lambda: 64 << 20)
    with pytest.raises(ModelError, match=r"needs .* GiB, the free memory holds"):
        Evaluation(
            [demo_gguf], EvalOptions(lengths=(1 << 20,), trials=1, tries=("none",))
        ).close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_logits_that_are_no_numbers_take_nothing_back(
    demo_gguf: Path, tmp_path: Path
) -> None:
    """Of two files the second is damaged: what the first came to is shown, then what is wrong."""
    whole, damaged = tmp_path / "whole.gguf", tmp_path / "damaged.gguf"
    data = demo_gguf.read_bytes()
    weights = read_gguf(demo_gguf).tensor_data("output_norm.weight")
    place = data.index(bytes(weights))
    whole.write_bytes(data)
    damaged.write_bytes(data[:place] + struct.pack("<f", np.nan) + data[place + 4 :])
    options = ["--lengths", "256", "--documents", "1", "--tasks", "none"]
    done = run(whole, damaged, *options)
    assert done.exit_code == 1
    assert "A · whole.gguf" in done.stdout
    assert re.search(
        r"damaged\.gguf, as baked: yarn ×8: perplexity at 256 tokens: the logits after token 0 are "
        r"not numbers",
        str(done.exception) + done.stderr,
    )


def test_ctrl_c_reports_what_was_measured(demo_gguf: Path, tmp_path: Path) -> None:
    kept = tmp_path / "run.jsonl"
    arguments = [
        "--lengths",
        "256,2k",
        "--trials",
        "2000",
        "--documents",
        "1",
        "--resume",
        kept,
    ]
    code = "from ggext.cli import main; main()"
    command = [sys.executable, "-c", code, "eval", demo_gguf, *arguments]
    with subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert re.search(
            r"tokens, about .*: lengths 256, 2,048", process.stderr.readline()
        )
        while not kept.exists() or len(kept.read_bytes().splitlines()) < 4:
            assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "effective context" in out
    assert f"stopped before the end; --resume {kept} goes on from here" in err
    assert "Traceback" not in err
