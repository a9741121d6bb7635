"""`Model(..., isolated=True)`: the same answers from another process, whose death is an error."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from paths import SUPPORT

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from processes import gone

from ggext import (
    ContextFullError,
    EngineDiedError,
    GgextError,
    Model,
    Reading,
    Sampling,
    SessionOptions,
    Settings,
    json_grammar,
)
from ggext.demo import sample_text
from ggext.errors import GgufError, UsageError
from ggext.runtime import child
from ggext.runtime.isolated import IsolatedHost
from ggext.runtime.model import CancelledError

GREEDY = Sampling(temperature=0)
TEXT = sample_text(300)
ANSWER = "Look for the map below."
# No end is allowed: the answer goes on until the context is full.
ENDLESS = Sampling(seed=1, grammar="root ::= [a-z ] root")


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


QUESTION = user("Tom hides the map below.\nWhere is the map?")
LONG = user(f"{TEXT}\nTom hides the map below.\nWhere is the map?")


def pid_of(model: Model) -> int:
    assert isinstance(model._engine, IsolatedHost)
    return model._engine.pid


def kill(model: Model, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid_of(model), number)


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    with Model(demo_gguf, context=512, isolated=True) as model:
        yield model


@pytest.fixture(scope="module")
def inside(demo_gguf: Path) -> Iterator[Model]:
    """The same in this process."""
    with Model(demo_gguf, context=512) as model:
        yield model


def told(model: Model, **options: Any) -> list[object]:
    reply = model.chat(LONG, **options)
    events: list[object] = [
        event for event in reply.events() if not isinstance(event, Reading)
    ]
    return [*events, reply.finish, reply.count, reply.dropped, reply.message]


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": GREEDY},
        {"sampling": Sampling(temperature=2, seed=7), "max_tokens": 40},
        {
            "sampling": Sampling(seed=3, repeat_penalty=1.3),
            "stop": "the",
            "max_tokens": 40,
        },
        {"sampling": Sampling(seed=1, grammar='root ::= "oar" | "map"')},
        {"sampling": GREEDY, "max_tokens": 0},
    ],
)
def test_the_tokens_are_those_of_one_process(
    model: Model, inside: Model, options: dict[str, Any]
) -> None:
    assert told(model, **options) == told(inside, **options)


def test_what_is_read_and_reused_is_the_same(model: Model, inside: Model) -> None:
    counts = []
    for each in (model, inside):
        each.chat(user("The dog sings."), max_tokens=0).text()
        replies = [
            each.chat(question, sampling=GREEDY)
            for question in (LONG, LONG[:], QUESTION)
        ]
        readings = [
            [event for event in reply.events() if isinstance(event, Reading)]
            for reply in replies
        ]
        prefills = [reply.prefill for reply in replies]
        counts.append(
            (readings, [(p.reused, p.evaluated) for p in prefills if p is not None])
        )
    assert counts[0] == counts[1]


def test_text_and_facts_are_the_same(model: Model, inside: Model) -> None:
    for ask in (
        lambda each: each.count(TEXT),
        lambda each: each.count_chat(LONG),
        lambda each: (each.context, each.trained, each.path.name),
        lambda each: each.complete(
            "The map <|end|>", special=True, sampling=GREEDY
        ).text(),
        lambda each: each.count("ends in a lone surrogate \ud800"),
    ):
        assert ask(model) == ask(inside)


def test_nothing_of_llama_cpp_is_loaded_in_the_host(demo_gguf: Path) -> None:
    code = (
        "import sys\nfrom ggext import Model\n"
        f"with Model({str(demo_gguf)!r}, context=512, isolated=True) as model:\n"
        "    print(model.complete('The dog', max_tokens=2).text() != '')\n"
        "print('llama_cpp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("True\nFalse\n", "")


def test_errors_are_the_same(demo_gguf: Path, tmp_path: Path, model: Model) -> None:
    with pytest.raises(ContextFullError) as full:
        model.chat(user(sample_text(600)))
    assert full.value.available == 512
    with pytest.raises(UsageError, match="the grammar is not GBNF"):
        model.chat(QUESTION, sampling=Sampling(grammar="tree ::= [a-z]")).text()
    with pytest.raises(GgufError, match="No such file"):
        Model(tmp_path / "none.gguf", isolated=True)
    with pytest.raises(UsageError, match="eval_callback"):
        Model(
            demo_gguf, isolated=True, settings=Settings(SessionOptions(eval_callback=1))
        )
    with (
        Model(
            demo_gguf, context=256, isolated=True, settings=Settings(parallel=2)
        ) as two,
        pytest.raises(UsageError, match="parallel=2"),
    ):
        two.save_cache(tmp_path / "book.kv")
    with pytest.raises(GgextError, match="the model is closed"):
        two.chat(QUESTION)
    assert model.chat(QUESTION, sampling=GREEDY).text() == ANSWER


def test_a_load_is_followed_and_cancelled(demo_gguf: Path) -> None:
    fractions: list[float] = []
    options: dict[str, Any] = {"context": 256, "isolated": True}
    with Model(
        demo_gguf, **options, load_progress=lambda f: fractions.append(f) is None
    ):
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
    with pytest.raises(CancelledError, match="was cancelled"):
        Model(demo_gguf, **options, load_progress=lambda _: False)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_death_is_an_error_that_names_it_and_the_next_call_answers(
    model: Model, name: str
) -> None:
    before = pid_of(model)
    reply = model.chat(user("The dog"), sampling=ENDLESS)
    next(iter(reply))
    waits = model._engine.ask(a_question())
    kill(model, signal.Signals[name])
    with pytest.raises(
        EngineDiedError, match=f"demo.*died of {name}.*next call"
    ) as died:
        reply.text()
    assert died.value.signal == name
    with pytest.raises(EngineDiedError, match=name):
        list(waits)
    assert gone(before)
    assert model.chat(QUESTION, sampling=GREEDY).text() == ANSWER
    assert pid_of(model) != before


def test_an_assertion_of_ggml_is_quoted() -> None:
    with pytest.raises(
        EngineDiedError, match=r"SIGABRT.*GGML_ASSERT\(n_dims <= ne0\) failed"
    ):
        child.call("dying:gives_up_in_ggml")


def test_a_death_while_loading_is_an_error(demo_gguf: Path) -> None:
    """Of the first child, and of one that follows; then one is started after all."""
    before = set(child._children)

    def end(_: float) -> bool:
        (loading,) = set(child._children) - before
        loading.kill()
        return True

    with pytest.raises(EngineDiedError, match="SIGKILL"):
        Model(demo_gguf, isolated=True, context=256, load_progress=end)
    with Model(demo_gguf, isolated=True, context=256) as model:
        for _ in range(2):
            kill(model)
            assert gone(pid_of(model))
            reply = model._engine.ask(a_question())
            kill(model)
            with pytest.raises(EngineDiedError):
                list(reply)
        assert model.chat(QUESTION, sampling=GREEDY).text() == ANSWER


def a_question() -> Any:
    from ggext.runtime.answering import Question

    return Question([5, 6, 7], GREEDY, 3)


def test_a_kept_cache_is_restored_after_a_death(
    demo_gguf: Path, tmp_path: Path
) -> None:
    with Model(demo_gguf, context=512, isolated=True) as model:
        model.chat(LONG, sampling=GREEDY).text()
        size = model.save_cache(tmp_path / "book.kv")
        assert size == (tmp_path / "book.kv").stat().st_size
        kill(model)
        assert gone(pid_of(model))
        reply = model.chat(LONG, sampling=GREEDY)
        assert reply.text() == ANSWER
        assert reply.prefill is not None
        assert reply.prefill.evaluated <= 2
        (tmp_path / "book.kv").write_bytes(b"GGUF")
        with pytest.raises(GgextError, match=r"book\.kv"):
            model.restore_cache(tmp_path / "book.kv")
        kill(model)
        assert gone(pid_of(model))
        assert model.chat(LONG, sampling=GREEDY).text() == ANSWER  # read again


def test_another_file_in_its_place_is_refused(demo_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(demo_gguf.read_bytes())
    with Model(path, context=256, isolated=True) as model:
        kill(model)
        assert gone(pid_of(model))
        os.utime(path, (1, 1))
        with pytest.raises(GgextError, match="another file than when it was opened"):
            model.chat(QUESTION)


def test_asyncio_threads_and_tasks_share_it(model: Model) -> None:
    async def ask() -> str:
        return "".join([piece async for piece in model.chat(QUESTION, sampling=GREEDY)])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(ask() for _ in range(4)))

    assert asyncio.run(all_of_them()) == [ANSWER] * 4
    answers: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(model.chat(QUESTION, sampling=GREEDY).text())
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [ANSWER] * 8


def test_a_reader_that_waits_in_asyncio_hears_of_the_death(model: Model) -> None:
    async def ask() -> None:
        async for _ in model.chat(user("The dog"), sampling=ENDLESS):
            kill(model)

    with pytest.raises(EngineDiedError):
        asyncio.run(ask())


def test_answers_are_cancelled(model: Model) -> None:
    """By an event, by leaving the loop, by dropping the reply, one that waits too."""
    event = threading.Event()
    event.set()
    endless: dict[str, Any] = {"sampling": ENDLESS}
    reply = model.chat(user("The dog"), cancel=event, **endless)
    assert (reply.text(), reply.finish) == ("", "cancelled")
    reply = model.chat(user("The dog"), **endless)
    waits = model.chat(QUESTION, sampling=GREEDY)
    for _ in reply:
        break
    waits.cancel()
    assert (waits.text(), waits.finish) == ("", "cancelled")
    assert reply.text() or reply.finish == "cancelled"
    dropped = model.chat(user("The dog"), **endless)
    next(iter(dropped))
    del dropped
    gc.collect()
    assert model.chat(QUESTION, sampling=GREEDY).text() == ANSWER


def test_closing_ends_what_runs_and_the_child(demo_gguf: Path) -> None:
    model = Model(demo_gguf, context=512, isolated=True)
    reply = model.chat(user("The dog"), sampling=ENDLESS)
    next(iter(reply))
    model.close()
    model.close()
    reply.text()
    assert reply.finish == "cancelled"
    assert gone(pid_of(model))
    with pytest.raises(GgextError, match="closed"):
        model.chat(QUESTION)


def test_a_model_that_is_dropped_takes_its_child_along(demo_gguf: Path) -> None:
    model = Model(demo_gguf, context=256, isolated=True)
    pid = pid_of(model)
    reply = model.chat(QUESTION, sampling=GREEDY)
    del model
    assert reply.text() == ANSWER
    del reply
    gc.collect()
    assert gone(pid)


def _in_a_fork(model: Model, told: multiprocessing.Queue[str]) -> None:
    try:
        model.chat(QUESTION).text()
    except GgextError as error:
        told.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_is_refused_and_does_no_harm(model: Model) -> None:
    context = multiprocessing.get_context("fork")
    told: multiprocessing.Queue[str] = context.Queue()
    forked = context.Process(target=_in_a_fork, args=(model, told))
    forked.start()
    assert "another process" in told.get(timeout=30)
    forked.join(30)
    assert forked.exitcode == 0
    assert model.chat(QUESTION, sampling=GREEDY).text() == ANSWER


def _spawned(path: str, told: multiprocessing.Queue[str]) -> None:
    with Model(path, context=256, isolated=True) as model:
        told.put(model.chat(QUESTION, sampling=GREEDY).text())


def test_a_spawned_process_has_its_own(demo_gguf: Path) -> None:
    code = (
        "import multiprocessing, sys\n"
        "from test_isolated import _spawned\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    told = context.Queue()\n"
        "    process = context.Process(target=_spawned, args=(sys.argv[1], told))\n"
        "    process.start()\n"
        "    print(told.get(timeout=60))\n"
        "    process.join()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo_gguf)],
        env=os.environ
        | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{SUPPORT}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == f"{ANSWER}\n"


@pytest.mark.parametrize("end", ["return", "SIGKILL"])
def test_a_host_that_ends_takes_a_busy_child_along(demo_gguf: Path, end: str) -> None:
    code = (
        "import os, signal, sys\nfrom ggext import Model, Sampling\n"
        "model = Model(sys.argv[1], context=512, isolated=True)\n"
        "sampling = Sampling(grammar='root ::= [a-z ] root')\n"
        "reply = model.complete('The dog', sampling=sampling)\n"
        "next(iter(reply))\n"
        "print(model._engine.pid, flush=True)\n"
        "if sys.argv[2] == 'SIGKILL':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo_gguf), end],
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == (0 if end == "return" else -signal.SIGKILL)
    assert gone(int(done.stdout))


def test_killed_at_random_no_turn_is_lost(demo_gguf: Path) -> None:
    """In a load, a prefill, an answer, a restore; `benchmarks/isolated.py kills` does it 100
    times."""
    rng = random.Random(5)
    pids: set[int] = set()
    turns: list[dict[str, str]] = []
    with Model(demo_gguf, context=2048, isolated=True) as model:
        for number in range(6):
            pids.add(pid_of(model))
            timer = threading.Timer(rng.random() * 0.15, kill, (model,))
            timer.start()
            turns += user(f"{sample_text(150, number)}\nWhere is the map?")
            while True:
                try:
                    reply = model.chat(turns, sampling=GREEDY, max_tokens=20)
                    turns.append({"role": "assistant", "content": reply.text()})
                    break
                except EngineDiedError:
                    continue
            timer.join()
            pids.add(pid_of(model))
    assert len(turns) == 12
    with Model(demo_gguf, context=2048) as inside:
        for number in range(1, 12, 2):
            reply = inside.chat(turns[:number], sampling=GREEDY, max_tokens=20)
            assert reply.text() == turns[number]["content"]
    assert all(gone(pid) for pid in pids)


def test_a_schema_constrains_an_isolated_answer(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
    }
    reply = model.chat(
        QUESTION, sampling=Sampling(seed=1, grammar=json_grammar(schema))
    )
    assert "".join(reply.text().split())[:4] == '{"a"'
