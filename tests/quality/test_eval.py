"""`ggext.evaluate` on the embedded model: its figures, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.cli.eval_table import as_table  # noqa: E402
from ggext.convert import ConvertOptions, convert  # noqa: E402
from ggext.errors import UsageError  # noqa: E402
from ggext.quality.run import Evaluation, Progress, evaluate  # noqa: E402
from ggext.quality.settings import EvalOptions  # noqa: E402
from ggext.rope.scaling import RopeScaling  # noqa: E402

pytestmark = pytest.mark.slow

SMALL = EvalOptions(lengths=(256, 1024), trials=2, documents=2, tries=("none",))


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


def test_one_reading_serves_more_questions(demo_gguf: Path, tmp_path: Path) -> None:
    """And without the price no file is read unscaled, for those who have one that is."""
    kept = tmp_path / "run.jsonl"
    asked = EvalOptions(lengths=(1024,), trials=1, documents=1, needles=16, price=False)
    found = evaluate(demo_gguf, asked, partial=kept).settings
    assert len(found) == 1
    assert found[0].price is None
    assert found[0].scores[0].score.items == 16
    assert found[0].scores[0].score.units == 1
    with pytest.raises(UsageError, match="needles"):
        Evaluation([demo_gguf], EvalOptions(lengths=(1024,), trials=1), kept)


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
