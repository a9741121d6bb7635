"""The engine on a real small model: what is evaluated, what is kept, what stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from engine_texts import GREEDY
from paths import SHARED

from ggext.errors import ContextFullError, ModelError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.engine import CancelledError, Model, Session, SessionOptions  # noqa: E402

CHECKPOINT = SHARED / "models/stories260K"


def last_logits(session: Session) -> Any:
    pointer = session.cache.lib.llama_get_logits_ith(session.cache.handle, -1)
    return np.ctypeslib.as_array(pointer, (session.model.n_vocab,)).copy()


def slow(session: Session, seconds: float) -> None:
    """Every batch takes at least `seconds`, as with a large model."""
    append = session.cache.append

    def slowed(tokens: Sequence[int], every_logit: bool = False) -> bool:
        time.sleep(seconds)
        return append(tokens, every_logit)

    session.cache.append = slowed  # type: ignore[method-assign]


@pytest.mark.shared("models/stories260K")
def test_greedy_text_is_the_published_one(stories: Model) -> None:
    with Session(stories) as session:
        session.evaluate([stories.bos])
        generation = session.generate(GREEDY, max_tokens=256)
        text = b"".join(stories.token_to_piece(token) for token in generation).decode()
    assert text.strip() == (CHECKPOINT / "greedy.txt").read_text().strip()
    assert generation.finish == "length"


def test_an_answer_that_reaches_the_end_of_the_context_says_so(
    session: Session,
) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    assert len(list(generation)) == 512
    assert (generation.finish, session.used, session.available) == ("context", 512, 0)


def test_generation_ends_at_the_end_token(session: Session) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    tokens = iter(range(1, 9))
    generation._is_last = lambda _token: next(tokens) == 5
    assert (len(list(generation)), generation.finish) == (4, "eog")


@pytest.mark.parametrize(
    ("second", "reused", "evaluated"),
    [
        pytest.param([1, 2, 3, 4, 5], 3, 2, id="longer"),
        pytest.param([1, 2, 9], 2, 1, id="last differs"),
        pytest.param([9, 2, 3], 0, 3, id="first differs"),
        pytest.param([1, 2, 3], 3, 0, id="same"),
        pytest.param([1, 2], 1, 1, id="shorter: its last token again, for the logits"),
    ],
)
def test_only_the_changed_suffix_is_evaluated(
    session: Session, model: Model, second: list[int], reused: int, evaluated: int
) -> None:
    session.evaluate([1, 2, 3])
    prefill = session.evaluate(second)
    assert (prefill.reused, prefill.evaluated) == (reused, evaluated)
    assert session.tokens == tuple(second)
    with Session(model) as fresh:
        fresh.evaluate(second)
        np.testing.assert_allclose(last_logits(session), last_logits(fresh), atol=2e-3)


@pytest.mark.parametrize("cancelled_at", [None, 128])
def test_what_is_read_ahead_gives_the_logits_of_reading_at_once(
    model: Model, story: list[int], cancelled_at: int | None
) -> None:
    """Bit for bit: only whole batches are read ahead, also where that is stopped on the way."""
    with Session(model, SessionOptions(n_batch=64)) as session:
        session.evaluate(story[:50])
        session.evaluate(story)
        expected = last_logits(session)
    with Session(model, SessionOptions(n_batch=64)) as session:
        session.evaluate(story[:50])

        def progress(done: int, _total: int) -> None:
            if done == cancelled_at:
                session.cancel()

        ahead = session.read_ahead(story[:-7], progress)
        assert (ahead.reused, ahead.evaluated) == (50, cancelled_at or 384)
        assert session.read_ahead(story[:60]).evaluated == 0
        prefill = session.evaluate(story)
        assert prefill.reused == 50 + ahead.evaluated
        assert np.array_equal(last_logits(session), expected)


def test_an_answer_is_reused_by_the_next_turn(session: Session) -> None:
    session.evaluate([1, 2, 3])
    answer = list(session.generate(GREEDY, 10))
    prefill = session.evaluate([1, 2, 3, *answer, 7])
    assert (prefill.reused, prefill.evaluated) == (
        12,
        2,
    )  # the last one was never evaluated


def test_progress_counts_batches_from_zero(model: Model, story: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    with Session(model, SessionOptions(n_batch=200)) as session:
        session.evaluate(story[:100])
        session.evaluate(story, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 401), (200, 401), (400, 401), (401, 401)]


def test_batches_do_not_change_the_logits(session: Session, story: list[int]) -> None:
    whole = session.logits(story)
    parts = session.logits(story, n_batch=7)
    assert whole.shape == (501, session.model.n_vocab)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, parts, atol=2e-3)


def test_logits_do_not_depend_on_the_cache(session: Session, story: list[int]) -> None:
    before = session.logits(story[:50])
    session.evaluate(story[100:])
    np.testing.assert_array_equal(session.logits(story[:50]), before)


def test_logits_are_those_that_sampling_sees(
    session: Session, story: list[int]
) -> None:
    rows = session.logits(story[:50])
    session.evaluate(story[:50])
    assert next(session.generate(GREEDY)) == int(rows[-1].argmax())


def test_a_prompt_that_does_not_fit_changes_nothing(session: Session) -> None:
    session.evaluate([1, 2, 3])
    with pytest.raises(ContextFullError) as full:
        session.evaluate([1, 2, *[4] * 511])
    error = full.value
    assert (error.requested, error.used, error.available) == (511, 2, 510)
    assert session.tokens == (1, 2, 3)
    assert len(list(session.generate(GREEDY, 2))) == 2


def test_a_prompt_that_just_fits_gives_one_token(
    session: Session, story: list[int]
) -> None:
    session.evaluate([*story, *story[:11]])
    generation = session.generate(GREEDY)
    assert (len(list(generation)), generation.finish) == (1, "context")


def test_the_context_is_the_one_asked_for_not_llama_cpps_rounded_one(
    model: Model,
) -> None:
    with Session(model, SessionOptions(n_ctx=100)) as session:
        assert session.n_ctx == 100
        with pytest.raises(ContextFullError):
            session.evaluate([1] * 101)


def test_cancelling_a_prefill_keeps_the_session_right(
    model: Model, story: list[int]
) -> None:
    with Session(model, SessionOptions(n_batch=50)) as session:
        prefill = session.evaluate(
            story, lambda done, _total: session.cancel() if done >= 100 else None
        )
        assert prefill.cancelled
        assert 0 < session.used < len(story)
        assert session.tokens == tuple(story[: session.used])
        with pytest.raises(ModelError, match="nothing to continue"):
            session.generate(GREEDY)
        again = session.evaluate(story)
        assert (again.reused, again.cancelled) == (prefill.evaluated, False)
        with Session(model, SessionOptions(n_batch=50)) as fresh:
            fresh.evaluate(story)
            np.testing.assert_allclose(
                last_logits(session), last_logits(fresh), atol=2e-3
            )


def test_cancelling_stops_inside_a_batch(
    model: Model, story: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(model, SessionOptions(n_batch=512)) as session:
        session.evaluate(story[:10])

        def cancel_now(done: int, _total: int) -> None:
            if done == 0:
                session.cancel()
                monkeypatch.setattr(Cache, "cancelled", False)

        prefill = session.evaluate(story, cancel_now)
        assert (prefill.cancelled, prefill.evaluated) == (True, 0)
        assert session.tokens == tuple(story[:10])


def test_cancelling_ends_an_answer_and_not_the_next(session: Session) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    tokens = [next(generation), next(generation)]
    session.cancel()
    assert list(generation) == []
    assert generation.finish == "cancelled"
    session.evaluate([1])
    assert list(session.generate(GREEDY, 2)) == tokens


def test_cancelling_logits_raises(session: Session, story: list[int]) -> None:
    slow(session, 0.2)
    timer = threading.Timer(0.05, session.cancel)
    timer.start()
    with pytest.raises(CancelledError, match="0 of 501"):
        session.logits(story)
    timer.join()


def test_a_failed_progress_callback_leaves_the_session_right(
    model: Model, story: list[int]
) -> None:
    def fail(done: int, _total: int) -> None:
        if done:
            raise ZeroDivisionError

    with Session(model, SessionOptions(n_batch=50)) as session:
        with pytest.raises(ZeroDivisionError):
            session.evaluate(story, fail)
        assert session.tokens == tuple(story[:50])
        assert session.evaluate(story).reused == 50


def test_two_threads_cannot_share_a_session(session: Session, story: list[int]) -> None:
    slow(session, 0.3)
    thread = threading.Thread(target=session.evaluate, args=(story[:10],))
    thread.start()
    time.sleep(0.1)
    with pytest.raises(ModelError, match="another thread"):
        session.evaluate([1])
    thread.join()
    assert session.used == 10


def test_a_generation_ends_when_its_session_moves_on(session: Session) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    next(generation)
    session.evaluate([1, 2])
    with pytest.raises(ModelError, match="something else"):
        next(generation)
