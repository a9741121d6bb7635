"""How the worker hands an answer over: by a clock that the test moves, so that no load matters."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from ggext.runtime import worker
from ggext.runtime.answering import End, Happening, Mailbox, Question
from ggext.runtime.engine import Model, Prefill, Sampling, Session, SessionOptions
from ggext.runtime.worker import Worker, _Job

READ = Prefill(0, 3, 0.1, cancelled=False)


class Clock:
    """Seconds that pass when the test says so, and the naps that were taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.naps: list[float] = []
        fake = SimpleNamespace(perf_counter=lambda: self.now, sleep=self.naps.append)
        monkeypatch.setattr(worker, "time", fake)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def parcels(
    clock: Clock,
    durations: Sequence[float],
    threads: int = 2,
    interrupt: Callable[[int, queue.SimpleQueue[Any]], None] = lambda *_: None,
) -> list[list[Happening]]:
    """What a reader gets of an answer whose tokens take so many seconds."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> Generator[Happening, None, None]:
        yield (0, 3)
        yield READ
        for token, seconds in enumerate(durations):
            clock.now += seconds
            interrupt(token, inbox)
            yield token
        yield End("eog")

    session: Any = SimpleNamespace(
        threads=threads, resume=lambda: None, cancel=lambda: None
    )
    mailbox = Mailbox()
    job = _Job(session, work, mailbox)
    while not job.ended:
        while not inbox.empty():
            inbox.get()
        job.turn(worker._TOGETHER, inbox)
    found = []
    while (parcel := mailbox.take(0)) is not None:
        found.append(parcel)
    return found


def sizes(found: list[list[Happening]]) -> list[int]:
    """Tokens of each parcel that has any."""
    counts = [sum(type(happening) is int for happening in parcel) for parcel in found]
    return [count for count in counts if count]


def test_the_first_token_comes_at_once_and_later_ones_together(clock: Clock) -> None:
    found = parcels(clock, [1 / 64] * 13)
    assert found[:3] == [[(0, 3)], [READ], [0]]
    assert sizes(found) == [1, 3, 3, 3, 3]
    assert [token for parcel in found for token in parcel if type(token) is int] == [
        *range(13)
    ]


def test_a_slow_writer_s_tokens_come_one_by_one(clock: Clock) -> None:
    assert sizes(parcels(clock, [0.06] * 5)) == [1] * 5


@pytest.mark.parametrize("seconds", [0.001, 0.004, 0.013, 0.024, 0.026, 0.049])
def test_no_token_waits_longer_than_said(clock: Clock, seconds: float) -> None:
    for size in sizes(parcels(clock, [seconds] * 100)):
        assert (size - 1) * seconds < worker._TOGETHER


def test_the_reader_has_the_cores_for_itself_after_each_parcel(clock: Clock) -> None:
    found = parcels(clock, [1 / 64] * 13)
    assert clock.naps == [worker._PAUSE] * len(sizes(found))
    clock.naps.clear()
    parcels(clock, [0.01] * 13, threads=1)  # which waits for no other
    assert clock.naps == []


def test_another_question_does_not_wait_for_a_parcel(clock: Clock) -> None:
    def asked(token: int, inbox: queue.SimpleQueue[Any]) -> None:
        if token in (3, 5):
            inbox.put(None)

    assert sizes(parcels(clock, [0.001] * 9, interrupt=asked)) == [1, 3, 2, 3]


def test_what_wakes_the_thread_does_not_end_every_parcel(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words to the thread are read once, not kept: each of them would part the tokens for ever."""
    monkeypatch.setattr(worker, "_TOGETHER", 3600.0)
    with (
        Model.open(demo_gguf) as model,
        Session(model, SessionOptions(n_ctx=512, threads=1)) as session,
        Worker([session]) as by,
    ):
        for _ in range(5):
            by.wake()
        answering = by.ask(Question([5, 6, 7], Sampling(temperature=5, seed=1), 60))
        assert len(list(answering)) == answering.count
        calls: list[int] = []
        again = by.ask(Question([5, 6, 7], Sampling(temperature=5, seed=1), 60))
        while again.next_happening() is not None:
            calls.append(len(again._parcel))
        assert max(calls) >= again.count - 3  # all but the first in one


def test_an_answer_is_cancelled_while_its_tokens_are_gathered(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_TOGETHER", 3600.0)
    with (
        Model.open(demo_gguf) as model,
        Session(model, SessionOptions(n_ctx=2048, threads=1)) as session,
        Worker([session]) as by,
    ):
        append_one = session.cache.append_one

        def slowed(token: int) -> bool:
            time.sleep(0.005)
            return append_one(token)

        monkeypatch.setattr(session.cache, "append_one", slowed)
        answering = by.ask(Question([5, 6, 7], Sampling(temperature=9, seed=2), 1500))
        next(answering)
        answering.cancel()
        assert len(list(answering)) < 1400
        assert answering.finish == "cancelled"
