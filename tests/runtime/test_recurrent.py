"""Layers that keep a state in place of their tokens: what can be cut back, what cannot, and what a
call that was stopped in the middle leaves."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
from recurrent_models import recurrent_model

from ggext.errors import ModelError
from ggext.runtime.auto import open_session
from ggext.runtime.engine import Model, Session, SessionOptions
from ggext.runtime.memory import POLICIES, MemoryOptions
from ggext.runtime.prefixes import Prefixes

pytest.importorskip("llama_cpp")

CONTEXT = 256
IDS = [3 + 7 * i % 250 for i in range(CONTEXT)]
CLOSE = 1e-5  # logits of another order of the same float32 sums


@pytest.fixture(
    scope="module",
    params=[
        *("deepseek4", "falcon-h1", "granitehybrid", "lfm2", "nemotron_h"),
        *("qwen35", "qwen3next"),
    ],
)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp(request.param)
    with recurrent_model(folder, request.param, CONTEXT) as model:
        yield model


def opened(model: Model, **memory: object) -> Session:
    return Session(model, opened_options(**memory))


def opened_options(**memory: object) -> SessionOptions:
    return SessionOptions(
        n_ctx=CONTEXT,
        n_batch=32,
        threads=1,
        kv_type="f32",
        flash_attention=False,
        memory=MemoryOptions(**memory),  # type: ignore[arg-type]
    )


def of_a_new_session(model: Model, tokens: list[int]) -> np.ndarray:
    with opened(model) as session:
        return session.logits(tokens)[-1]


def test_a_batch_that_was_stopped_leaves_the_last_state_that_is_whole(
    model: Model,
) -> None:
    """llama.cpp says that its tokens are there (``llama_memory_seq_rm`` refuses to take them out of
    a state), and they are not."""
    with opened(model) as session:
        session.evaluate(IDS[:90])
        session.cancel()
        assert not session.cache.append(IDS[90:120])
        assert list(session.tokens) == IDS[:90]
        session.resume()
        assert session.evaluate(IDS[:130]).reused == 90
        assert (
            np.abs(session.last_logits() - of_a_new_session(model, IDS[:130])).max()
            <= CLOSE
        )


def test_a_stopped_batch_without_a_copy_leaves_nothing(model: Model) -> None:
    with opened(model) as session:
        session.logits(IDS[:40])  # which makes no copies
        session.cancel()
        assert not session.cache.append_one(IDS[40])
        assert session.tokens == ()
        session.resume()
        session.evaluate(IDS[:50])
        assert (
            np.abs(session.last_logits() - of_a_new_session(model, IDS[:50])).max()
            <= CLOSE
        )


def test_another_question_reads_its_own_tokens_alone(model: Model) -> None:
    """A text is cut back to where a prompt ended, for the state of that place was copied."""
    other = [*IDS[:100], *IDS[5:25]]
    with opened(model) as session:
        session.evaluate(IDS[:100])
        session.evaluate(IDS[:140])
        assert session.evaluate(other).reused == 100
        assert (
            np.abs(session.last_logits() - of_a_new_session(model, other)).max()
            <= CLOSE
        )


def test_any_walk_ends_in_the_logits_of_its_text(model: Model) -> None:
    random = Random(model.architecture)
    with opened(model) as session:
        text: list[int] = []
        for _ in range(12):
            text = (
                text[: random.randrange(len(text) + 1)]
                if random.random() < 0.6
                else text
            )
            text = [*text, *random.choices(IDS, k=random.randint(1, 40))][:CONTEXT]
            session.evaluate(text)
            assert list(session.tokens) == text
            difference = session.last_logits() - of_a_new_session(model, text)
            assert np.abs(difference).max() <= CLOSE


def test_a_side_request_leaves_the_state_of_the_long_text(model: Model) -> None:
    with Session(model, opened_options(), Prefixes()) as session:
        session.evaluate(IDS[:200])
        session.evaluate([9] * 50)
        text = [*IDS[:200], 4, 5]
        session.evaluate(text)
        assert (
            np.abs(session.last_logits() - of_a_new_session(model, text)).max() <= CLOSE
        )


def test_auto_takes_what_needs_no_part_of_a_state(model: Model) -> None:
    session, chosen = open_session(
        model, SessionOptions(n_ctx=CONTEXT, threads=1), Prefixes(), 0
    )
    session.close()
    assert chosen.policy in ("recompute", "turns")


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"stop", "recompute"}))
def test_policies_that_take_a_part_out_are_refused(model: Model, policy: str) -> None:
    with pytest.raises(
        ModelError, match=r"keep one state of the whole text.*recompute works"
    ):
        opened(model, when_full=policy, sinks=4)


def test_a_full_context_is_read_again(model: Model) -> None:
    with opened(model, when_full="recompute", sinks=4) as session:
        session.evaluate([*IDS, *IDS[:60]])
        assert session.dropped > 0
        kept = list(session.tokens)
        assert (
            np.abs(session.last_logits() - of_a_new_session(model, kept)).max() <= 1e-3
        )


def test_a_text_that_left_its_context_comes_back_with_its_state(model: Model) -> None:
    options = SessionOptions(CONTEXT, 1, 32, "f32", flash_attention=False)
    with Session(model, options, Prefixes()) as session:
        session.evaluate(IDS[:150])
        assert session.evaluate(IDS[100:190]).reused == 0
        assert session.evaluate(IDS[:200]).reused == 150
        assert (
            np.abs(session.last_logits() - of_a_new_session(model, IDS[:200])).max()
            <= CLOSE
        )
