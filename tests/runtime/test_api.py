"""`from ggext import Model`: what a program that embeds ggext relies on."""

from __future__ import annotations

import asyncio
import dataclasses
import doctest
import gc
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
import typing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

import ggext.api
import ggext.runtime.constraint
import ggext.runtime.gbnf
from ggext import (
    ContextFullError,
    GgextError,
    Model,
    Reading,
    Reasoning,
    Reply,
    ReplyEvent,
    Sampling,
    SessionOptions,
    Settings,
    Text,
    json_grammar,
)
from ggext.arguments import check as check_type
from ggext.chat.reasoning import Tags
from ggext.chat.template import ChatTemplate
from ggext.demo import sample_text
from ggext.errors import UsageError
from ggext.runtime import store
from ggext.runtime.answering import End, Happening, Question
from ggext.runtime.cache import Cache
from ggext.runtime.engine import Model as Weights
from ggext.runtime.engine import Prefill, Session
from ggext.runtime.worker import Worker

GREEDY = Sampling(temperature=0)
TEXT = sample_text(300)


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    with Model(demo_gguf, context=512) as model:
        yield model


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def hides(thing: str, place: str) -> list[dict[str, str]]:
    return user(f"Tom hides the {thing} {place}.\nWhere is the {thing}?")


@pytest.mark.parametrize(
    ("module", "least"),
    [(ggext.api, 16), (ggext.runtime.constraint, 2), (ggext.runtime.gbnf, 1)],
)
def test_the_examples_in_the_documentation_run(
    module: ModuleType, least: int, demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_gguf.parent)
    result = doctest.testmod(module)
    assert (result.failed, result.attempted >= least) == (0, True)


def test_the_example_in_the_docs_runs(
    demo_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = ROOT / "docs" / "runtime.md"
    code = docs.read_text("utf-8").split("```python\n")[1].split("```")[0]
    shutil.copy(demo_gguf, tmp_path / "demo-yarn4.gguf")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    exec(code, {"print": lambda piece, **_: told.append(piece)})
    assert "".join(told) == "Look for the map below."


def test_an_answer_comes_in_pieces(model: Model) -> None:
    reply = model.chat(hides("map", "below"), sampling=GREEDY)
    pieces = list(reply)
    assert "".join(pieces) == "Look for the map below."
    assert len(pieces) > 3
    assert (reply.finish, reply.count) == ("eog", 6)
    assert reply.prefill is not None
    assert reply.text() == "Look for the map below."


def test_reasoning_is_no_part_of_the_answer(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model answers "Look for the map below.", of which the tags make a block of reasoning."""
    monkeypatch.setattr(model._prompts, "tags", Tags("Look", "map"))
    reply = model.chat(hides("map", "below"), sampling=GREEDY)
    assert "".join(reply) == reply.text() == "below."
    assert reply.reasoning.strip() == "for the"

    async def ask() -> str:
        return "".join(
            [
                piece
                async for piece in model.chat(hides("map", "below"), sampling=GREEDY)
            ]
        )

    assert asyncio.run(ask()) == "below."


def test_only_what_changed_is_read_again(model: Model) -> None:
    first = model.chat(user(f"{TEXT}\nWhere is the map?"), sampling=GREEDY)
    first.text()
    again = model.chat(user(f"{TEXT}\nWhere is the oar?"), sampling=GREEDY)
    again.text()
    assert again.prefill is not None
    assert again.prefill.reused > 290
    assert again.prefill.evaluated < 10


def test_events_tell_the_reading_the_reasoning_and_the_text(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model._prompts, "tags", Tags("Look", "map"))
    question = user(
        f"{sample_text(280, seed=5)}Tom hides the map below.\nWhere is the map?"
    )
    reply = model.chat(question, sampling=GREEDY)
    events = list(reply.events())
    reading = [event for event in events if isinstance(event, Reading)]
    assert events[: len(reading)] == reading
    assert reading[0].done == 0
    assert reading[-1].done == reading[-1].total > 280
    assert reply.prefill is not None
    assert reply.prefill.evaluated == reading[-1].total
    assert (
        "".join(event.text for event in events if isinstance(event, Reasoning))
        == reply.reasoning
        == "for the "
    )
    assert [event.text for event in events if isinstance(event, Text)] == ["below", "."]

    async def ask() -> list[ReplyEvent]:
        return [event async for event in model.chat(question, sampling=GREEDY).events()]

    assert [
        event for event in asyncio.run(ask()) if not isinstance(event, Reading)
    ] == events[len(reading) :]


def test_a_stop_string_ends_the_answer_in_front_of_it(model: Model) -> None:
    for stop, text in {
        " map": "Look for the",
        " the map b": "Look for",
        "nowhere": "Look for the map below.",
    }.items():
        reply = model.chat(hides("map", "below"), sampling=GREEDY, stop=stop)
        assert reply.text() == text
        assert reply.finish == ("eog" if stop == "nowhere" else "stop")
    reply = model.chat(hides("map", "below"), sampling=GREEDY, stop=["below", " for"])
    assert (list(reply), reply.finish) == (["Look"], "stop")
    with pytest.raises(GgextError, match="a stop string is empty"):
        model.chat(user("?"), stop="")


def test_an_answer_has_the_length_that_was_asked_for(model: Model) -> None:
    for most in (0, 2):
        reply = model.chat(hides("map", "below"), sampling=GREEDY, max_tokens=most)
        assert reply.text() == ("Look for" if most else "")
        assert (reply.finish, reply.count) == ("length", most)
    with pytest.raises(GgextError, match="max_tokens is -1, but must not be negative"):
        model.chat(user("?"), max_tokens=-1)


def test_an_answer_follows_a_schema(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"place": {"enum": ["below", "aloft"]}},
        "required": ["place"],
    }
    told = set()
    for grammar in (json_grammar(schema), json_grammar(json.dumps(schema))):
        reply = model.chat(
            hides("map", "below"), sampling=Sampling(seed=7, grammar=grammar)
        )
        told.add(json.loads(reply.text())["place"])
    assert len(told) == 1
    assert told <= {"below", "aloft"}
    with pytest.raises(GgextError, match="the grammar is not GBNF"):
        model.chat(user("?"), sampling=Sampling(grammar="tree ::= [a-z]")).text()


def test_reasoning_is_asked_of_the_template(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template adds words for what it was asked; the tokens that are read tell which."""
    template = (
        "{{ messages[-1].content }}{% if enable_thinking is defined %}{{ ' the' * (9 if "
        "enable_thinking else 5) }}"
        "{% endif %}"
    )
    monkeypatch.setattr(model._prompts, "template", ChatTemplate(template, {}))
    counts = []
    for think in (None, True, False):
        reply = model.chat(user("map"), think=think, max_tokens=0)
        reply.text()
        assert reply.prefill is not None
        counts.append(reply.prefill.evaluated + reply.prefill.reused)
    assert [count - counts[0] for count in counts] == [0, 9, 5]


def test_a_base_model_continues_a_text(model: Model) -> None:
    reply = model.complete("Leo smiles again. The", sampling=GREEDY, stop="sleeps")
    assert (reply.text(), reply.finish) == (" goat dances. The dog ", "stop")
    counts = []
    for special in (False, True):
        reply = model.complete("The map <|end|>", max_tokens=0, special=special)
        reply.text()
        assert reply.prefill is not None
        counts.append(reply.prefill.evaluated + reply.prefill.reused)
    assert counts[0] > counts[1]


def test_a_conversation_is_counted_as_it_is_read(model: Model) -> None:
    messages = [{"role": "system", "content": "The dog sings."}, *hides("map", "below")]
    count = model.count_chat(messages)
    reply = model.chat(messages, sampling=GREEDY)
    reply.text()
    assert reply.prefill is not None
    assert (
        reply.prefill.evaluated + reply.prefill.reused
        == count
        > model.count(messages[1]["content"])
    )
    messages += [reply.message, {"role": "user", "content": "Where is the map?"}]
    assert messages[2] == {"role": "assistant", "content": "Look for the map below."}
    assert model.chat(messages, sampling=GREEDY).text() == "Look for the map below."


def test_a_cache_is_saved_and_restored(demo_gguf: Path, tmp_path: Path) -> None:
    question = user(f"{TEXT}\nWhere is the map?")
    with Model(demo_gguf, context=512) as model:
        answer = model.chat(question, sampling=GREEDY).text()
        assert (
            model.save_cache(tmp_path / "book.kv")
            == (tmp_path / "book.kv").stat().st_size
        )
    with Model(demo_gguf, context=512) as model:
        count = model.restore_cache(tmp_path / "book.kv")
        reply = model.chat(question, sampling=GREEDY)
        assert reply.text() == answer
        assert reply.prefill is not None
        assert reply.prefill.reused == model.count_chat(question) - 1 < count
        (tmp_path / "book.kv").write_bytes(b"GGUF")
        with pytest.raises(GgextError, match=r"book\.kv"):
            model.restore_cache(tmp_path / "book.kv")
        assert model.chat(question, sampling=GREEDY).text() == answer
    with pytest.raises(GgextError, match="the model is closed"):
        model.save_cache(tmp_path / "book.kv")
    with (
        Model(demo_gguf, context=512, settings=Settings(parallel=2)) as model,
        pytest.raises(GgextError, match="parallel=2"),
    ):
        model.save_cache(tmp_path / "book.kv")


def test_what_a_policy_dropped_is_told(demo_gguf: Path) -> None:
    """Of each answer by itself: the second text is another one, and the third a short one."""
    with Model(demo_gguf, context=256, when_full="stream") as model:
        dropped = []
        for length, seed in ((900, 1), (600, 2), (150, 3)):
            reply = model.chat(
                user(sample_text(length, seed)), sampling=GREEDY, max_tokens=4
            )
            reply.text()
            dropped.append(reply.dropped)
    assert 600 < dropped[0] < 900
    assert 300 < dropped[1] < 600
    assert dropped[2] == 0


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


def test_a_document_that_does_not_fit_is_refused_with_counts_before_it_is_read(
    model: Model,
) -> None:
    document = user(sample_text(600))
    with pytest.raises(ContextFullError) as full:
        model.chat(document)
    assert (full.value.requested, full.value.available) == (
        model.count_chat(document),
        512,
    )
    with pytest.raises(ContextFullError):
        model.complete(document[0]["content"])
    assert (
        model.chat(hides("oar", "aloft"), sampling=GREEDY).text()
        == "Look for the oar aloft."
    )


def test_oldest_turns_leave_and_it_is_said(
    demo_gguf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [{"role": "system", "content": "The dog sings."}]
    for seed in range(4):
        turns += [
            *user(sample_text(150, seed)),
            {"role": "assistant", "content": "The cat runs."},
        ]
    with (
        caplog.at_level(logging.WARNING, "ggext"),
        Model(demo_gguf, context=512, when_full="turns") as model,
    ):
        reply = model.chat([*turns, *hides("map", "below")], sampling=GREEDY)
        assert reply.text() == "Look for the map below."
    assert [turn.content for turn in reply.left[:1]] == [turns[1]["content"]]
    assert len(reply.left) in (4, 6)
    assert f"the {len(reply.left)} oldest turns left it" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": "user"},
        {"role": "king", "content": ""},
        {"role": "user", "content": 1},
    ],
)
def test_what_is_no_message_is_refused(model: Model, message: dict[str, str]) -> None:
    with pytest.raises(GgextError, match="a message needs a role"):
        model.chat([message])


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


def test_a_text_alone_is_one_user_turn(model: Model) -> None:
    """Everybody's first try; it was an AttributeError."""
    greedy = {"temperature": 0}
    question = "Tom hides the map below. Where is the map?"
    in_full = model.chat(
        [{"role": "user", "content": question}], sampling=Sampling(temperature=0)
    )
    assert model.chat(question, sampling=greedy).text() == in_full.text()


def test_a_reply_says_what_it_is_and_is_looped_over_once(model: Model) -> None:
    reply = model.chat("Where is the map?", max_tokens=3)
    assert repr(reply).startswith("<Reply: ")
    whole = "".join(reply)
    assert reply.text() == whole
    with pytest.raises(UsageError, match="once"):
        list(reply)
    read = model.chat("Where is the map?", max_tokens=3)
    assert read.text() == read.text()
    with pytest.raises(UsageError, match="once"):  # it was nothing, without a word
        list(read)


def _words_of(value: object) -> str:
    """The same in every process: an object's own words hold its address."""
    return "object" if type(value) is object else repr(value)


WRONG = (
    5,
    1.5,
    None,
    True,
    b"x",
    "x",
    object(),
    [],
    {},
    [1],
    {"a": 1},
    -1,
    float("nan"),
    "é" * 9,
)
# What each parameter takes of these, so that nothing is asked of the model for it.
RIGHT: dict[str, tuple[object, ...]] = {
    "messages": ("x", "é" * 9),
    "text": ("x", "é" * 9),
    "prompt": ("x", "é" * 9),
    "sampling": (None, {}),
    "max_tokens": (None, 5),
    "stop": ("x", "é" * 9, []),
    "think": (None, True),
    "cancel": (None,),
    "special": (True, None),
}


@pytest.mark.parametrize("wrong", WRONG, ids=_words_of)
@pytest.mark.parametrize(
    ("method", "parameter"),
    [
        *(
            ("chat", name)
            for name in ("messages", "sampling", "max_tokens", "stop", "think")
        ),
        *(("complete", name) for name in ("prompt", "sampling", "max_tokens", "stop")),
        ("chat", "cancel"),
        ("count", "text"),
        ("count_chat", "messages"),
        ("save_cache", "path"),
        ("restore_cache", "path"),
    ],
)
def test_every_wrong_type_is_an_error_of_ggext(
    model: Model, method: str, parameter: str, wrong: object
) -> None:
    if any(
        wrong is right or wrong == right
        for right in RIGHT.get(parameter, ("x", "é" * 9))
    ):
        pytest.skip("it is right")
    first = {"chat": {"messages": "Hi"}, "complete": {"prompt": "Hi"}}.get(method, {})
    arguments = first | {"max_tokens": 0} if first else {}
    with pytest.raises(GgextError):
        getattr(model, method)(**arguments | {parameter: wrong})


@pytest.mark.parametrize("wrong", WRONG, ids=_words_of)
@pytest.mark.parametrize(
    "kind",
    "MemoryOptions RopeGeometry RopeScaling RopeTable Sampling Settings SessionOptions Turn "
    "ConvertOptions".split(),
)
def test_every_wrong_option_is_an_error_of_ggext(kind: str, wrong: object) -> None:
    """Each field of each public dataclass: a value of another type, or an error of ggext."""
    import ggext
    from ggext.convert import ConvertOptions

    options: Any = {"ConvertOptions": ConvertOptions}.get(kind) or getattr(ggext, kind)
    needed = {
        "RopeGeometry": {"n_rot": 2, "head_dim": 2, "base": 1.0, "layout": "norm"}
        | {"trained_context": 8},
        "RopeTable": {"inv_freq": (1.0,), "attention_factor": 1.0, "context": 8},
        "Turn": {"role": "user", "content": ""},
        "ConvertOptions": {"model": Path("x")},
    }.get(kind, {})
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        try:
            made = options(**needed | {field.name: wrong})
        except GgextError:
            continue
        check_type(field.name, getattr(made, field.name), hints[field.name])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"path": 5}, "path is 5"),
        (
            {"context": "big"},
            "context is 'big', but must be a whole number or one of auto",
        ),
        ({"context": 3.5}, "context is 3.5"),
        ({"context": -1}, "context is -1, but must be at least 1"),
        (
            {"context": 10**11},
            "context is 100000000000, but must be at most 2147483647",
        ),
        (
            {"when_full": "explode"},
            "when_full is 'explode', but must be one of turns, auto, stop",
        ),
        ({"settings": {"parallel": 2}}, "settings is"),
        ({"load_progress": 3}, "load_progress is 3, but must be a function"),
    ],
)
def test_a_model_refuses_wrong_arguments(
    arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        Model(**{"path": "nothing.gguf"} | arguments)


def test_an_empty_conversation_and_one_that_is_answered_are_refused(
    model: Model,
) -> None:
    with pytest.raises(UsageError, match="the conversation is empty"):
        model.chat([])
    answered = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UsageError, match="ends with a message of the assistant"):
        model.chat(answered)
    with pytest.raises(
        UsageError, match=r"sampling has no 'temprature'; did you mean temperature"
    ):
        model.chat("x", sampling={"temprature": 1})


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


@pytest.mark.parametrize("when", ["after an answer", "after a part of it", "restored"])
def test_a_seed_gets_the_logits_of_an_empty_cache(
    demo_gguf: Path, tmp_path: Path, when: str
) -> None:
    """2 of 6 answers differed with the same seed: what follows a cached part was read in other
    batches, and answers in the cache had been evaluated token by token."""
    options = SessionOptions(n_ctx=1024, n_batch=32)
    with (
        Weights.open(demo_gguf) as weights,
        Session(weights, options) as session,
        Session(weights, options) as fresh,
    ):
        tokens = weights.tokenize(TEXT)[:200]
        if when == "after a part of it":
            session.evaluate(tokens[:77])
        session.evaluate(tokens, repeatable=True)
        tokens += list(session.generate(Sampling(temperature=2, seed=1), 70))
        if when == "restored":
            key = store.session_key(session)
            store.save(tmp_path / "kv.bin", session, key)
            session.clear()
            store.restore(tmp_path / "kv.bin", session, key)
        tokens += weights.tokenize("Where is the map?", add_special=False)
        prefill = session.evaluate(tokens, repeatable=True)
        fresh.evaluate(tokens)
        assert (session.last_logits() == fresh.last_logits()).all()
        assert prefill.reused == 192  # the whole batches of what was read at once


def test_the_same_seed_gives_the_same_answer_whatever_is_cached(
    demo_gguf: Path,
) -> None:
    warm = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=11)
    turns = [{"role": "user", "content": TEXT}]
    with Model(demo_gguf, context=1024) as model:
        first = model.chat(turns, sampling=warm, max_tokens=60)
        turns += [{"role": "assistant", "content": first.text()}]
        turns += [{"role": "user", "content": "Where is the map?"}]
        second = model.chat(turns, sampling=warm, max_tokens=200)
        said = second.text()
        assert second.prefill is not None
        assert second.prefill.reused > 0
    with Model(demo_gguf, context=1024) as model:
        assert model.chat(turns, sampling=warm, max_tokens=200).text() == said
