"""`ggext eval` as a user calls it: the page, JSON, refusals, Ctrl-C."""

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

from ggext.errors import GgextError, ModelError, UsageError  # noqa: E402
from ggext.gguf.open import read_gguf  # noqa: E402
from ggext.quality.plan import Plan  # noqa: E402
from ggext.quality.run import Evaluation, evaluate  # noqa: E402
from ggext.quality.settings import EvalOptions  # noqa: E402

pytestmark = pytest.mark.slow


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


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


def test_a_folder_that_cannot_be_written_is_said_before_the_start(
    demo_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    done = run(demo_gguf, "--html", str(tmp_path / "report.html"))
    assert done.exit_code == 1
    assert f"the folder {tmp_path} cannot be written" in done.stderr
    assert not done.stdout


def test_a_report_that_cannot_be_written_is_printed_all_the_same(
    demo_gguf: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.mkdir()
    small = ("--lengths", "256", "--trials", "1", "--documents", "1")
    done = run(demo_gguf, *small, "--html", str(page))
    assert done.exit_code == 1
    assert "effective context" in done.stdout
    assert "report.html" in done.stderr


def test_each_length_may_have_texts_of_its_own_number(demo_gguf: Path) -> None:
    """Short texts are cheap."""
    lengths = ("--lengths", "256,512", "--documents", "1", "--json")
    done = run(demo_gguf, *lengths, "--trials", "3,1")
    scores = json.loads(done.stdout)["settings"][0]["scores"]
    assert [score["score"]["items"] for score in scores] == [15, 5]
    assert "1 to 3 texts a length" in done.stderr
    wrong = run(demo_gguf, *lengths, "--trials", "3,2,1")
    assert wrong.exit_code == 2
    assert "trials has 3 numbers for 2 lengths" in wrong.stderr


def test_a_budget_picks_what_fits(demo_gguf: Path) -> None:
    def planned(seconds: float) -> Plan:
        with Evaluation([demo_gguf], EvalOptions(budget=seconds)) as evaluation:
            return evaluation.plan

    small, large = planned(0.5), planned(1e6)
    assert set(large.trials.values()) == {100}
    assert max(small.trials.values()) < 100
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
