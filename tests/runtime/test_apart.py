"""Ctrl-C while llama.cpp calls back into Python: never lost, never an answer."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_gguf import write_random

from ggext.runtime import apart

pytest.importorskip("llama_cpp")

from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions
from ggext.runtime.probe import CELLS, Probe
from ggext.runtime.rope_watcher import RopeNode

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here; what Python could only print."""
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    assert not dropped


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_ends_what_calls_back_all_the_time() -> None:
    """libc's qsort stands for llama.cpp."""
    running, stopped, freed = threading.Event(), threading.Event(), []
    pointer = ctypes.POINTER(ctypes.c_int)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer)(lambda a, b: a[0] - b[0])
    numbers = (ctypes.c_int * 256)(*range(256, 0, -1))

    def sort() -> str:
        while not stopped.is_set():
            ctypes.CDLL(None).qsort(numbers, 256, 4, compare)
            running.set()
        return "sorted"

    def meanwhile() -> None:
        if running.is_set():
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        apart.run(sort, stop=stopped.set, free=freed.append, meanwhile=meanwhile)
    assert freed == ["sorted"]


def test_another_thread_calls_by_itself() -> None:
    names: list[str] = []

    def name() -> None:
        names.append(threading.current_thread().name)

    apart.run(name, stop=lambda: None)
    thread = threading.Thread(
        target=lambda: apart.run(name, stop=lambda: None), name="mine"
    )
    thread.start()
    thread.join()
    assert names == ["ggext-llama.cpp", "mine"]


def test_an_error_is_raised_where_the_call_was_made() -> None:
    with pytest.raises(ZeroDivisionError):
        apart.run(lambda: 1 // 0, stop=lambda: None)


def test_a_forked_process_has_a_thread_of_its_own() -> None:
    assert apart.run(lambda: 1, stop=lambda: None) == 1
    child = os.fork()
    if not child:
        os._exit(apart.run(lambda: 7, stop=lambda: None))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open(
        write_random(tmp_path_factory.mktemp("m") / "m.gguf", "llama")
    ) as model:
        yield model


@pytest.mark.usefixtures("interrupts")
def test_a_measurement_that_is_interrupted_has_no_numbers(model: Model) -> None:
    """In each node of the graph in turn."""
    for last in range(4):
        seen: list[RopeNode] = []

        def sink(node: RopeNode, seen: list[RopeNode] = seen, last: int = last) -> None:
            seen.append(node)
            if len(seen) == last + 1:
                interrupt()

        with Probe(model, CELLS, sink) as probe:
            with pytest.raises(KeyboardInterrupt):
                probe.decode([5, 6, 7], 0)
            assert len(seen) > last


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_session_goes_on(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SessionOptions(
        n_ctx=64, threads=1, memory=MemoryOptions("landmark", retrieved=8)
    )
    with Session(model, options) as session:
        session.evaluate(list(range(3, 20)))
        expected = session.logits([5, 6, 7])
        watcher = session.cache.queries
        layers = session.cache.rotation().layers
        look = watcher._look
        monkeypatch.setattr(watcher, "_look", lambda *a: (interrupt(), look(*a))[1])
        with watcher.watching(layers), pytest.raises(KeyboardInterrupt):
            session.evaluate(list(range(20, 30)))
        monkeypatch.setattr(watcher, "_look", look)
        assert (session.logits([5, 6, 7]) == expected).all()


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_load_leaves_nothing(tmp_path: Path) -> None:
    path = write_random(tmp_path / "m.gguf", "llama")

    def progress(_: float) -> bool:
        interrupt()
        return True

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            Model.open(path, progress=progress)
    with Model.open(path) as model:
        assert model.n_vocab
