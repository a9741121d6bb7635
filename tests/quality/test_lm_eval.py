"""The model for lm-evaluation-harness, against the harness's own one on the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")
pytest.importorskip("transformers")

from lm_eval.api.registry import get_model

from ggext.chat.transcript import Turn
from ggext.checkpoint.named import DEMO_MODEL
from ggext.errors import UsageError
from ggext.lm_eval import GgufLM
from ggext.quality.perplexity import nll

PAIRS = [
    ("tom put the red ball in the", " box"),
    ("tom put the red ball in the", " garden"),
    ("the cat is", " in the house"),
    ("", "the dog is in the garden"),
    ("tom put the red ball in the", " box"),
]
TEXT = "tom put the red ball in the box . the cat is in the house . " * 8


def asked(*arguments: Any) -> list[Any]:
    """Requests as the harness hands them over."""
    return [SimpleNamespace(args=one) for one in arguments]


@pytest.fixture(scope="module")
def ours(demo_gguf: Path) -> Iterator[GgufLM]:
    # 16-bit keys and values would be measured as if they were the harness's.
    lm = GgufLM(demo_gguf, scaling="none", max_length=128, kv_type="f32", threads=1)
    yield lm
    lm.model.close()


@pytest.fixture(scope="module")
def theirs() -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(DEMO_MODEL),
        device="cpu",
        dtype="float32",
        max_length=128,
        batch_size=1,
    )


def test_the_harness_knows_it_by_name() -> None:
    assert get_model("ggext") is GgufLM


def test_likelihoods_are_those_of_the_harness_s_own_model(
    ours: GgufLM, theirs: Any
) -> None:
    actual = ours.loglikelihood(asked(*PAIRS), disable_tqdm=True)
    expected = theirs.loglikelihood(asked(*PAIRS), disable_tqdm=True)
    assert [one for one, _ in actual] == pytest.approx(
        [one for one, _ in expected], abs=1e-3
    )
    assert [greedy for _, greedy in actual] == [greedy for _, greedy in expected]
    assert actual[0] == actual[4] != actual[1]


def test_a_text_longer_than_the_context_is_scored_in_the_same_windows(
    ours: GgufLM, theirs: Any
) -> None:
    tokens = ours.tok_encode(TEXT, add_special_tokens=False)
    assert len(tokens) > ours.max_length
    (actual,) = ours.loglikelihood_rolling(asked((TEXT,)), disable_tqdm=True)
    (expected,) = theirs.loglikelihood_rolling(asked((TEXT,)), disable_tqdm=True)
    assert actual == pytest.approx(expected, abs=1e-2)


def test_answers_are_those_of_the_harness_s_own_model(
    ours: GgufLM, theirs: Any
) -> None:
    requests = asked(
        ("the cat is in", {"until": ["."], "max_gen_toks": 12}),
        ("tom put the", {"until": ["\n"], "max_gen_toks": 7}),
    )
    actual = ours.generate_until(requests, disable_tqdm=True)
    assert actual == theirs.generate_until(requests, disable_tqdm=True)
    assert "." not in actual[0]
    assert actual[1]


def test_a_request_beyond_the_context_loses_its_beginning(
    ours: GgufLM, caplog: pytest.LogCaptureFixture
) -> None:
    ((actual, _),) = ours.loglikelihood(asked((TEXT, "the cat")), disable_tqdm=True)
    assert "loses its first" in caplog.text
    context, answer = ours._encode_pair(TEXT, "the cat")
    kept = [*context, *answer][-ours.max_length - 1 :]
    ours.session.clear()
    expected = nll(ours.session, kept, len(kept) - len(answer))
    assert actual == pytest.approx(-float(expected.sum()), abs=1e-6)


def test_a_chat_is_in_the_file_s_template_with_one_bos(ours: GgufLM) -> None:
    chat = [{"role": "user", "content": "where is the cat ?"}]
    text = ours.apply_chat_template(chat)
    assert ours.tok_encode(text) == ours._prompts.tokens(
        [Turn("user", "where is the cat ?")]
    )
    begun = [*chat, {"role": "assistant", "content": "the cat is"}]
    assert (
        ours.apply_chat_template(begun, add_generation_prompt=False)
        == f"{text}the cat is"
    )


def test_what_it_cannot_do_is_said(ours: GgufLM, demo_gguf: Path) -> None:
    with pytest.raises(UsageError, match="batch_size is auto"):
        GgufLM(demo_gguf, batch_size="auto")
    with pytest.raises(UsageError, match="no room for a question"):
        ours.generate_until(
            asked(("a", {"until": [], "max_gen_toks": 128})), disable_tqdm=True
        )
    with pytest.raises(UsageError, match="'rag'"):
        ours.chat_template("rag")
