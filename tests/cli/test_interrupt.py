"""What Ctrl-C reaches."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from terminal import GGEXT, GREEDY

from ggext.screen.interrupt import on_interrupt

if TYPE_CHECKING:
    pass
np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_reaches_a_prefill_inside_llama_cpp(slow_gguf: Path) -> None:
    from ggext.runtime.engine import Model, Session, SessionOptions

    with (
        Model.open(slow_gguf) as model,
        Session(model, SessionOptions(n_batch=4096)) as session,
    ):
        session.evaluate([1])
        make_batch, timers = session.cache._batch, []

        def batch(tokens: Sequence[int], every_logit: bool) -> Any:
            timers.append(interrupt_after(0.1))
            return make_batch(tokens, every_logit)

        session.cache._batch = batch  # type: ignore[method-assign]
        with on_interrupt(session.cancel):
            prefill = session.evaluate([1] * 4096)
            timers[0].join()
    assert prefill.cancelled
    assert (
        prefill.evaluated == 0
    )  # all were in one call of llama_decode, which did not come to its end
    assert len(timers) == 1


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background and inherited an ignored
    SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_on_interrupt_raises_nothing_and_restores_the_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    called = threading.Event()
    with on_interrupt(called.set):
        interrupt_after(0).join()
        assert called.wait(30)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the signal comes in the sleep
        interrupt_after(0.05)
        time.sleep(30)


def test_on_interrupt_cancels_what_starts_a_moment_later() -> None:
    calls = threading.Semaphore(0)
    with on_interrupt(calls.release):
        _interrupt()
        assert all(calls.acquire(timeout=30) for _ in range(4))


def test_on_interrupt_leaves_other_threads_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with on_interrupt(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_ctrl_c_ends_a_question_at_once(slow_gguf: Path) -> None:
    command = [*GGEXT, str(slow_gguf), "-p", "Once", "--temperature", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error.decode().splitlines()[-1] == "stopped"


def test_ctrl_c_while_the_cache_is_written_keeps_the_turns(
    endless_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ggext.chat.session import Keeper, named
    from ggext.cli import main

    def interrupted(_: Keeper) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "save_state", interrupted)
    arguments = ["chat", str(endless_gguf), "-p", "Once", "--session", "lily", *GREEDY]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code in (0, None)
    assert (
        "the KV cache is not kept: Ctrl-C stopped its writing"
        in capsys.readouterr().err
    )
    with Keeper(named("lily"), "endless.gguf", None) as kept:
        assert [turn.role for turn in kept.turns] == ["user", "assistant"]
