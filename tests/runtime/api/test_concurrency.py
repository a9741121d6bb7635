"""One model for tasks, threads and forks: what streams, what is cancelled, what is refused."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from api_turns import GREEDY, TEXT, hides, user

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext import GgextError, Model, Reply, Sampling, Settings
from ggext.demo import sample_text
from ggext.runtime.cache import Cache


def test_asyncio_streams_and_does_not_block(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)

    async def ticks(done: asyncio.Event) -> int:
        count = 0
        while not done.is_set():
            await asyncio.sleep(0.001)
            count += 1
        return count

    async def ask() -> tuple[list[str], int]:
        done = asyncio.Event()
        ticking = asyncio.create_task(ticks(done))
        pieces = [
            piece
            async for piece in model.chat(user(TEXT), sampling=GREEDY, max_tokens=100)
        ]
        done.set()
        return pieces, await ticking

    pieces, count = asyncio.run(ask())
    assert len(pieces) > 3
    assert count > 2


def test_a_cancelled_task_cancels_the_answer(model: Model) -> None:
    async def ask() -> None:
        reply = model.chat(user(TEXT), sampling=Sampling(temperature=5, seed=1))
        async for _ in reply:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(ask())
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token takes 5 ms, as with a larger model: no answer ends before its reader can say a
    word."""
    append_one = Cache.append_one

    def slowed(cache: Cache, token: int) -> bool:
        time.sleep(0.005)
        return append_one(cache, token)

    monkeypatch.setattr(Cache, "append_one", slowed)


def test_an_event_cancels_before_and_during_the_answer(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    event = threading.Event()
    event.set()
    reply = model.chat(user(sample_text(400, seed=9)), cancel=event)
    assert (reply.text(), reply.finish) == ("", "cancelled")
    event.clear()
    reply = model.chat(
        user("The dog"), cancel=event, sampling=Sampling(temperature=3, seed=1)
    )
    for _ in reply:
        event.set()
    assert reply.finish == "cancelled"
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


def test_leaving_the_loop_frees_the_model(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the reply is kept; in asyncio as well, where a task's cancel does the same at
    once."""
    slowly(monkeypatch)
    replies = [
        model.chat(user("The dog"), sampling=Sampling(temperature=5, seed=seed))
        for seed in range(3)
    ]
    for _ in replies[0]:
        break

    async def leave() -> None:
        async for _ in replies[1]:
            break
        task = asyncio.create_task(_drained(replies[2]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    for reply in replies:
        assert reply.text() or reply.finish
        assert reply.finish == "cancelled"
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


async def _drained(reply: Reply) -> None:
    async for _ in reply:
        pass


def test_several_tasks_share_a_model(model: Model) -> None:
    places = {"map": "below", "oar": "aloft", "lamp": "below", "drum": "aloft"}

    async def ask(thing: str, place: str) -> str:
        return "".join(
            [piece async for piece in model.chat(hides(thing, place), sampling=GREEDY)]
        )

    async def all_of_them() -> list[str]:
        return await asyncio.gather(
            *(ask(thing, place) for thing, place in places.items())
        )

    assert asyncio.run(all_of_them()) == [
        f"Look for the {thing} {place}." for thing, place in places.items()
    ]


def test_an_abandoned_answer_frees_the_model(model: Model) -> None:
    reply = model.chat(user("The dog"), sampling=Sampling(temperature=5, seed=1))
    next(iter(reply))
    del reply
    gc.collect()
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


def test_a_session_s_error_is_raised_in_the_loop(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(Cache, "append", fail)
    with pytest.raises(ZeroDivisionError):
        model.chat(user("The cat")).text()
    monkeypatch.undo()
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


def talk_for_ever(model: Model) -> None:
    while True:
        model.chat(user("The dog"), sampling=Sampling(temperature=5)).text()


def test_a_keyboard_interrupt_leaves_a_usable_model(model: Model) -> None:
    reply = model.chat(user("The dog"), sampling=Sampling(temperature=5, seed=3))
    pieces = iter(reply)
    next(pieces)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            talk_for_ever(model)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, previous)
    reply.cancel()
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


def _in_child(model: Model, told: multiprocessing.Queue[str]) -> None:
    try:
        model.chat(user("Hello")).text()
    except GgextError as error:
        told.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_is_refused_clearly(model: Model) -> None:
    context = multiprocessing.get_context("fork")
    told: multiprocessing.Queue[str] = context.Queue()
    child = context.Process(target=_in_child, args=(model, told))
    child.start()
    assert "another process" in told.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


def test_closing_cancels_what_runs_and_further_calls_say_so(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    model = Model(demo_gguf, context=512)
    reply = model.chat(user("The dog"), sampling=Sampling(temperature=5, seed=1))
    model.close()
    model.close()
    reply.text()
    assert reply.finish == "cancelled"
    with pytest.raises(GgextError, match="closed"):
        model.chat(user("Hello"))


@pytest.mark.parametrize("parallel", [1, 3])
def test_eight_threads_get_the_answers_that_one_gets(
    demo_gguf: Path, parallel: int
) -> None:
    """Random answers are cancelled or dropped on the way; a longer run is
    `benchmarks/threads.py`."""
    things = ("map", "oar", "lamp", "drum", "kettle", "anchor")
    questions = [
        user(f"{sample_text(160, seed)}\nWhere is the {thing}?")
        for seed, thing in enumerate(things)
    ]
    wrong: list[object] = []
    with Model(demo_gguf, context=512, settings=Settings(parallel=parallel)) as model:
        right = [
            model.chat(question, sampling=GREEDY, max_tokens=40).text()
            for question in questions
        ]

        def hammer(number: int) -> None:
            rng = random.Random(number)
            try:
                for _ in range(12):
                    index = rng.randrange(len(questions))
                    reply = model.chat(questions[index], sampling=GREEDY, max_tokens=40)
                    if rng.random() < 0.4:
                        threading.Timer(rng.random() * 0.01, reply.cancel).start()
                    text = reply.text()
                    if text != right[index] and not (
                        reply.finish == "cancelled" and right[index].startswith(text)
                    ):
                        wrong.append((index, text, reply.finish))
            except BaseException as error:  # noqa: BLE001 - told to the test
                wrong.append(error)

        threads = [
            threading.Thread(target=hammer, args=(number,)) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_an_answer_that_nobody_reads_on_stops_no_other(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It blocked every later question and save_cache for ever."""
    monkeypatch.setattr("ggext.runtime.worker._AHEAD", 4)
    warm = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    with Model(demo_gguf, context=1024) as model:
        whole = model.complete("Tom hides", sampling=warm, max_tokens=400).text()
        left = model.complete("Tom hides", sampling=warm, max_tokens=400)
        begun = iter(left)
        text = next(begun)
        time.sleep(0.5)  # until it has run far ahead of its reader
        assert model.complete("Leo finds", sampling=GREEDY, max_tokens=5).text()
        assert model.save_cache(tmp_path / "kv.bin") > 0
        text += "".join(begun)  # and goes on where it was
        assert left.finish == "length"
        assert text[:100] == whole[:100]
        assert left.count == 400
        parked = model.complete("Tom hides", sampling=warm, max_tokens=400)
        next(iter(parked))
        time.sleep(0.5)
        other = model.complete("Leo finds", sampling=GREEDY, max_tokens=5)
        parked.cancel()  # of a question whose session another has: that one is not ended by it
        assert other.text()
        assert other.finish == "length"
