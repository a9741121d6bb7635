"""The embedded model shows what context extension does: the figures that the README speaks of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggext.checkpoint.named import DEMO_MODEL
from ggext.cli import main
from ggext.data import demo_language as language
from ggext.demo import LENGTHS, METHODS, DemoResult, Watcher, run, work
from ggext.verify import verify

pytest.importorskip("llama_cpp")


QUESTIONS = 100


class Counted(Watcher):
    tokens = 0
    rows = 0

    def advance(self, tokens: int) -> None:
        self.tokens += tokens

    def row(self, *_: object) -> None:
        self.rows += 1


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, counted: Counted) -> DemoResult:
    """Half a minute of computing, once for all tests."""
    return run(tmp_path_factory.mktemp("demo"), questions=QUESTIONS, watcher=counted)


def test_recall_at_the_trained_context(result: DemoResult) -> None:
    assert result.recall("none", 256) >= 0.98


def test_recall_at_four_times_the_trained_context(result: DemoResult) -> None:
    assert result.recall("yarn", 1024) >= 0.95
    assert result.recall("none", 1024) <= 0.5


def test_recall_at_eight_times_the_trained_context(result: DemoResult) -> None:
    assert result.recall("yarn", 2048) >= 0.9
    assert result.recall("none", 2048) <= 0.1


def test_the_same_text_in_a_quarter_of_its_memory(result: DemoResult) -> None:
    assert result.compressed.length == 2048
    assert result.compressed.share.value >= 0.9


def test_perplexity_beyond_the_window(result: DemoResult) -> None:
    """YaRN stays level to the end; without scaling the last quarter is far worse than the first."""
    values = {p.method: p.values for p in result.perplexities}
    assert len(values["none"]) == len(values["yarn"]) == 8
    assert max(values["yarn"]) < 1.15 * values["yarn"][0]
    assert values["none"][-1] > 1.4 * values["none"][0]
    assert values["none"][0] < 1.2 * values["yarn"][0]


def test_the_example_is_what_the_files_said(result: DemoResult) -> None:
    assert (
        result.example.answers["yarn"]
        == result.example.right
        != result.example.answers["none"]
    )


def test_the_checkpoint_is_small_and_ordinary() -> None:
    sizes = {p.name: p.stat().st_size for p in DEMO_MODEL.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "CARD.md",
    } <= set(sizes)
    assert sum(sizes.values()) <= 4 << 20
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    assert (
        config["model_type"],
        config["head_dim"],
        config["max_position_embeddings"],
    ) == (
        "llama",
        32,
        256,
    )
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_the_word_demo_names_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["convert", "demo", "--yarn", "4"]).exit_code == 0
    report = verify(Path("demo-yarn4.gguf"), Path("demo"))
    assert report.passed
    assert max(c.value for c in report.checks if c.level == "logits") <= 1e-6


def test_a_text_to_chat_about() -> None:
    outcome = CliRunner().invoke(main, ["demo", "--text", "300"])
    assert language.count_tokens(outcome.stdout.rstrip("\n")) == 300
    assert CliRunner().invoke(main, ["demo", "--text", "100"]).exit_code == 2


def test_the_command_prints_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few questions and texts: the figures are the other tests' matter."""
    monkeypatch.setattr("ggext.demo._PERPLEXITY_TEXTS", 1)
    page = tmp_path / "report.html"
    outcome = CliRunner().invoke(
        main, ["demo", "--questions", "5", "--html", str(page)]
    )
    assert outcome.exit_code == 0, outcome.output
    for line in (
        "Answers that are exact",
        "no scaling",
        "YaRN",
        "Perplexity by position",
        "each was verified",
        "Effective context, score at least 85.6 % (RULER)",
        "  YaRN         not shown (256 is open: too few texts)",  # one text proves little
    ):
        assert line in outcome.stdout
    assert "as baked: yarn ×8" in page.read_text("utf-8")


def test_the_effective_context_is_that_of_the_answers(result: DemoResult) -> None:
    from ggext.cli.demo import _effective

    _, none, linear, ntk, yarn, _ = _effective(result)
    assert none.split(maxsplit=2)[2].startswith("256 tokens (512")
    assert linear.split(maxsplit=1)[1].startswith("256 tokens")
    assert yarn.split(maxsplit=1)[1].startswith("2,048 tokens")
    assert "tokens" in ntk


def test_the_work_is_known_before_it_is_done(
    result: DemoResult, counted: Counted
) -> None:
    assert len(result.recalls) == len(METHODS) * len(LENGTHS)
    assert counted.tokens == work(QUESTIONS)
    assert counted.rows == len(METHODS)


def test_the_interval_counts_texts_not_questions(result: DemoResult) -> None:
    (recall,) = (r for r in result.recalls if (r.method, r.length) == ("none", 256))
    assert (recall.share.items, recall.share.units) == (100, 20)
    assert recall.share.low < recall.share.value <= recall.share.high


def test_the_bar_stands_on_a_terminal_and_says_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ggext.cli.progress import steps

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with steps(10) as bar:
        bar.step("reading")
        bar.advance(5)
        bar.above("a row")
    out, err = capsys.readouterr()
    assert out == "a row\n"
    assert "reading " in err
    assert " left" in err
