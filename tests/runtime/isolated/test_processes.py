"""Tasks, threads, forks and spawned processes around an isolated model."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from isolated_models import ANSWER, ENDLESS, GREEDY, QUESTION, kill, pid_of, user
from paths import SUPPORT

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from processes import gone

from ggext import EngineDiedError, GgextError, Model

pytestmark = pytest.mark.slow


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
        "from test_processes import _spawned\n"
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
