"""The death of an isolated model's process is an error, and the next call answers."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from isolated_models import ANSWER, ENDLESS, GREEDY, LONG, QUESTION, kill, pid_of, user

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from processes import gone

from ggext import EngineDiedError, GgextError, Model
from ggext.demo import sample_text
from ggext.runtime import child

pytestmark = pytest.mark.slow


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
