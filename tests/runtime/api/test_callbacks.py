"""The thread behind `ggext.Model`: its order, its callbacks, its cancelling."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from api_turns import GREEDY, user

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext import Model, Sampling, SessionOptions, Settings
from ggext.demo import sample_text
from ggext.runtime.answering import End, Happening, Question
from ggext.runtime.engine import Model as Weights
from ggext.runtime.engine import Prefill, Session
from ggext.runtime.worker import Worker


@pytest.fixture
def worker(demo_gguf: Path) -> Iterator[Worker]:
    with Weights.open(demo_gguf) as weights:
        sessions = [
            Session(weights, SessionOptions(n_ctx=1024, n_batch=64)) for _ in range(2)
        ]
        with Worker(sessions) as worker:
            yield worker


def test_a_callback_gets_everything_in_order(worker: Worker) -> None:
    told: list[Happening] = []
    done = threading.Event()

    def callback(happening: Happening) -> None:
        told.append(happening)
        if isinstance(happening, End):
            done.set()

    worker.listen(Question([5] * 100, GREEDY, 3), callback)
    assert done.wait(30)
    assert told[:3] == [(0, 100), (64, 100), (100, 100)]
    assert isinstance(told[3], Prefill)
    assert [type(happening) for happening in told[4:]] == [int, int, int, End]


def test_an_error_in_a_callback_ends_only_its_answer(worker: Worker) -> None:
    def fail(_: Happening) -> None:
        raise ZeroDivisionError

    worker.listen(Question([5] * 100, GREEDY, 3), fail)
    assert len(list(worker.ask(Question([5] * 100, GREEDY, 3)))) == 3


def test_cancelling_an_answer_that_waits_ends_it_at_once_and_leaves_the_one_before_alone(
    demo_gguf: Path,
) -> None:
    with (
        Weights.open(demo_gguf) as weights,
        Session(weights, SessionOptions(n_ctx=1024)) as session,
    ):
        entered, leave = threading.Event(), threading.Event()
        with Worker([session]) as worker:
            expected = list(worker.ask(Question([5, 6, 7], GREEDY, 20)))
            session.clear()
            threading.Thread(
                target=worker.do,
                args=(session, lambda: (entered.set(), leave.wait(30))),
            ).start()
            assert entered.wait(30)
            first, second, third = (
                worker.ask(Question([5, 6, 7], GREEDY, 20)) for _ in range(3)
            )
            second.cancel()
            assert (list(second), second.finish, second.prefill) == (
                [],
                "cancelled",
                None,
            )
            leave.set()
            assert (list(first), list(third)) == (expected, expected)
            assert first.finish != "cancelled" != third.finish


def test_cancelling_an_answer_that_waits_does_not_stop_the_one_that_runs(
    demo_gguf: Path,
) -> None:
    with (
        Weights.open(demo_gguf) as weights,
        Worker([Session(weights, SessionOptions(n_ctx=1024))]) as worker,
    ):
        runs = worker.ask(Question([5, 6, 7], Sampling(temperature=5, seed=1), 200))
        next(runs)
        waits = worker.ask(Question([8, 9], GREEDY, 20))
        waits.cancel()
        assert list(waits) == []
        assert len(list(runs)) == runs.count - 1
        assert runs.finish in ("length", "eog")


def test_a_long_prompt_does_not_hold_up_the_other_session(worker: Worker) -> None:
    order: list[str] = []
    done = threading.Event()

    def tell(name: str, happening: Happening) -> None:
        if isinstance(happening, Prefill | End):
            order.append(f"{name} {type(happening).__name__}")
        if order[-1:] == ["long End"]:
            done.set()

    worker.listen(Question([5] * 1000, GREEDY, 1), partial(tell, "long"))
    worker.listen(Question([6] * 10, GREEDY, 1), partial(tell, "short"))
    assert done.wait(60)
    assert order == ["short Prefill", "short End", "long Prefill", "long End"]


def test_a_reader_that_lags_stops_the_worker_and_nothing_is_lost(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggext.runtime.worker._AHEAD", 4)
    monkeypatch.setattr("ggext.runtime.worker._TOGETHER", 0.0)
    answering = worker.ask(Question([5, 6, 7], Sampling(temperature=5, seed=1), 60))
    time.sleep(0.3)
    waiting = answering._mailbox.waiting()
    assert waiting <= 5
    count = len(list(answering))
    assert answering.finish in ("length", "eog")
    assert count == answering.count > waiting or answering.finish == "eog"


def test_cancelling_stops_inside_a_batch(demo_gguf: Path) -> None:
    """A prefill of one batch of some 2,000 tokens: nothing of it is kept. How fast:
    `benchmarks/generate.py`."""
    with Model(
        demo_gguf, settings=Settings(SessionOptions(n_batch=2048, threads=1))
    ) as model:
        reply = model.chat(user(sample_text(1900)), sampling=GREEDY)
        time.sleep(0.02)
        reply.cancel()
        assert (reply.text(), reply.finish) == ("", "cancelled")
        assert reply.prefill is not None
        assert (reply.prefill.evaluated, reply.prefill.cancelled) == (0, True)
