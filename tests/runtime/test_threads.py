"""How many threads read a long text while other programs come and go: by a clock that the test
moves, and cores that it says are idle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.footprint import defaults  # noqa: E402
from ggext.footprint.machine import CoreUse  # noqa: E402
from ggext.runtime import threads  # noqa: E402
from ggext.runtime.engine import Model, Session, SessionOptions  # noqa: E402
from ggext.runtime.threads import ThreadCounts, Threads  # noqa: E402


class Machine:
    """Seconds that have passed, the cores that are idle, and how often someone looked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.idle, self.looks = 0.0, 4, 0
        monkeypatch.setattr(
            threads, "time", SimpleNamespace(monotonic=lambda: self.now)
        )
        monkeypatch.setattr(threads, "core_use", lambda: CoreUse(self.now, None, 0.0))
        monkeypatch.setattr(defaults, "threads_now", self.threads_now)

    def threads_now(self, most: int, since: CoreUse | None = None) -> int:
        assert since is not None  # no one waits for an observation
        self.looks += 1
        return min(most, self.idle)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_threads_follow_the_cores_that_are_idle(machine: Machine) -> None:
    changes: list[ThreadCounts] = []
    counted = Threads(ThreadCounts(2, 3, 0), changes.append)
    for idle in (4, 4, 1, 1, 2):
        machine.idle = idle
        counted.look()
        machine.now += 2.5
    assert [counts.for_one for counts in changes] == [3, 1, 2]
    assert counted.counts == ThreadCounts(2, 3, 0)


def test_nobody_looks_often_or_at_what_was_long_ago(machine: Machine) -> None:
    counted = Threads(
        ThreadCounts(2, 2, 0), lambda _: pytest.fail("nothing has changed")
    )
    for _ in range(21):  # of 0.1 s each
        counted.look()
        machine.now += 0.1
    assert machine.looks <= 1
    machine.now += 60
    machine.idle = 1
    before = machine.looks
    counted.look()
    assert machine.looks == before


@pytest.mark.parametrize("most", [0, 1])
def test_what_somebody_chose_stays(machine: Machine, most: int) -> None:
    counted = Threads(ThreadCounts(2, most, 0), lambda _: pytest.fail("someone chose"))
    for _ in range(5):
        counted.look()
        machine.now += 2.5
    assert (counted.counts.now, machine.looks) == (2, 0)


@pytest.mark.parametrize("flash", [False, True])
def test_a_text_is_read_by_more_threads_and_fewer_to_the_same_numbers(
    demo_gguf: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, flash: bool
) -> None:
    """With flash attention single tokens are computed by a fixed number of them."""
    monkeypatch.setattr(defaults, "threads", lambda _: 3)
    tokens = [3 + i * i % 250 for i in range(400)]
    with Model.open(demo_gguf, gpu_layers=0) as model:
        monkeypatch.setattr(defaults, "threads_now", lambda most, _=None: most)
        free = SessionOptions(
            n_ctx=512, n_batch=20, kv_type="f32", flash_attention=flash
        )
        with Session(model, free) as session:
            assert session.threads == 3
            lib, seen = session.cache.lib, []
            append = session.cache.append

            def watched(batch: list[int], every_logit: bool = False) -> bool:
                machine.now += 2.5
                machine.idle = 1 + len(seen) // 4 % 3
                seen.append(lib.llama_n_threads_batch(session.cache.handle))
                return append(batch, every_logit)

            monkeypatch.setattr(session.cache, "append", watched)
            monkeypatch.setattr(defaults, "threads_now", machine.threads_now)
            session.evaluate(tokens)
            assert set(seen) == {1, 2, 3}
            writing = lib.llama_n_threads(session.cache.handle)
            assert writing == (3 if flash else session.threads)
            assert flash == ("(3 for an answer)" in session.computes)
            found = session.last_logits()
        with Session(model, replace(free, threads=1)) as fixed:
            fixed.evaluate(tokens)
            assert (fixed.last_logits() == found).all()
