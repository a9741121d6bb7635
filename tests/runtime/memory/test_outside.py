"""What is kept outside a cache: where it goes, what is forgotten of it, and how it is looked up."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
from full_contexts import SMALL, options

from ggext.errors import OutputError, UsageError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime import store  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session  # noqa: E402
from ggext.runtime.memory import WhenFull  # noqa: E402
from ggext.runtime.memory.compress import Compress  # noqa: E402
from ggext.runtime.memory.gone import Gone  # noqa: E402
from ggext.runtime.memory.landmark import Landmark  # noqa: E402
from ggext.runtime.memory.outside import Outside  # noqa: E402
from ggext.runtime.memory.retrieval import Retrieval  # noqa: E402
from ggext.runtime.products import product  # noqa: E402

BYTES = 72  # of a token of the embedded model: its number and its keys
KEY = {"the model file": "a"}
_BLOCK = "ggext.runtime.memory.outside._BLOCK"


def retrieval_of(session: Session) -> Retrieval:
    assert isinstance(session.memory, Landmark | Compress)
    assert session.memory.retrieval is not None
    return session.memory.retrieval


def outside_of(session: Session) -> Outside:
    return retrieval_of(session).outside


def file_of(session: Session) -> int:
    file = outside_of(session)._file
    assert file is not None
    return file._file.fileno()


def test_the_oldest_is_forgotten_for_what_leaves_later(
    model: Model, text: list[int]
) -> None:
    made = options("landmark", kv_type="f32", evicted_memory=200 * BYTES, **SMALL)
    with Session(model, made) as session:
        for length in (300, 500, 900, 1500):
            session.evaluate(text[:length])
            outside, gone = outside_of(session), session.memory.gone
            count = len(outside)
            assert outside.nbytes == count * BYTES <= 200 * BYTES
            assert (
                outside._tokens.tolist()
                == text[gone.start :][gone.count - count : gone.count]
            )
            assert outside.forgotten.count == session.forgotten == gone.count - count
        assert count > 170
        assert outside._rows is not None
        assert sum(map(len, outside._rows)) == count
        session.evaluate(text[:10])
        assert (len(outside), outside.forgotten.count) == (0, 0)
        assert session.forgotten == gone.count - count
        session.evaluate([*text[:10], *text[700:]])
        assert session.forgotten > gone.count


def test_a_fact_that_was_forgotten_is_not_brought_back(
    model: Model, text: list[int]
) -> None:
    """What comes back is of what is still there."""
    made = options("landmark", evicted_memory=100 * BYTES, **SMALL)
    with Session(model, made) as session:
        session.evaluate(text[:900])
        outside, there = outside_of(session), retrieval_of(session).passages
        assert there is not None
        assert there.count == SMALL["retrieved"] < len(outside) <= 100


@pytest.mark.parametrize("bound", [None, 300 * BYTES])
def test_a_disk_gives_back_what_memory_does(
    model: Model,
    text: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: int | None,
) -> None:
    """Token by token; and the file is no larger than what is to be kept in it, in blocks whose
    places are used again."""
    monkeypatch.setattr(_BLOCK, 32)
    folder = tmp_path / "spill"
    folder.mkdir()
    bounds = {"evicted_memory": bound, **SMALL}
    made = options("landmark", kv_type="f32", **bounds)
    spilled = options("landmark", kv_type="f32", spill=folder, **bounds)
    with Session(model, made) as session, Session(model, spilled) as other:
        for end in range(300, 1500, 100):
            session.evaluate(text[:end])
            other.evaluate(text[:end])
            np.testing.assert_array_equal(session.last_logits(), other.last_logits())
        kept = outside_of(session)
        there = outside_of(other)
        assert list(there.saved()) == list(kept.saved())
        on_disk = os.fstat(file_of(other)).st_size
        assert 0 <= len(there) * (BYTES - 4) - on_disk <= 32 * (BYTES - 4)
        assert list(folder.iterdir()) == []  # it has no name
        other.clear()
        assert os.fstat(file_of(other)).st_size == 0
    with pytest.raises(ValueError, match="closed"):
        file_of(other)


def test_a_disk_that_is_full(
    model: Model, text: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in one line; once there is room, the same text is read from its beginning."""

    def fails(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_BLOCK, 32)
    kinds = options("landmark", kv_type="f32", spill=tmp_path, **SMALL)
    with Session(model, kinds) as session, Session(model, kinds) as other:
        with monkeypatch.context() as patch:
            patch.setattr("ggext.runtime.memory.rows.BlockFile.write", fails)
            with pytest.raises(OSError, match="No space"):
                session.evaluate(text[:600])
        assert session.used == 0
        for one in (session, other):
            one.clear()
            one.evaluate(text[:600])
        np.testing.assert_array_equal(session.last_logits(), other.last_logits())
    with pytest.raises(OutputError, match="nowhere"):
        Session(model, options("landmark", spill=tmp_path / "nowhere", **SMALL))


def test_a_file_that_cannot_be_written_or_read_is_an_error_in_one_line(
    model: Model, text: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_BLOCK, 32)
    made = options("landmark", spill=tmp_path, **SMALL)
    with Session(model, made) as session:
        session.evaluate(text[:400])
        os.truncate(file_of(session), 0)
        with pytest.raises(OutputError, match="are missing in its file"):
            list(outside_of(session)._rows or ())
    with Session(model, made) as session:
        file = outside_of(session)._file
        assert file is not None
        with open(os.devnull, "rb") as unwritable, file._file:
            file._file = unwritable
            with pytest.raises(OutputError, match="free some space"):
                session.evaluate(text[:600])


def test_a_kept_text_goes_on_without_what_was_forgotten(
    model: Model, text: list[int], tmp_path: Path
) -> None:
    made = options("landmark", kv_type="f32", evicted_memory=300 * BYTES, **SMALL)
    less = options("landmark", kv_type="f32", evicted_memory=150 * BYTES, **SMALL)
    path = tmp_path / "kv"
    with (
        Session(model, made) as session,
        Session(model, made) as other,
        Session(model, less) as small,
    ):
        session.evaluate(text[:900])
        assert session.forgotten > 200
        store.save(path, session, KEY)
        for one in (other, small):
            assert store.restore(path, one, KEY) == session.used
        gone = Gone()
        gone.add(0, text[4 : 4 + outside_of(small).forgotten.count])
        assert outside_of(small).forgotten == gone
        assert len(outside_of(small)) <= 150 < len(outside_of(other))
        question = [*text[:900], *text[20:60]]
        answers = []
        for one in (session, other, small):
            assert one.evaluate(question).evaluated == 40
            answers.append(list(one.generate(Sampling(temperature=0), 20)))
        assert answers[0] == answers[1]


@pytest.mark.parametrize("count", [1, 8, 31])
def test_a_question_that_is_asked_again_sees_its_passages(
    model: Model, text: list[int], count: int
) -> None:
    """Also where its last tokens only are evaluated: they were read without any before."""
    with Session(model, options("landmark", kv_type="f32", **SMALL)) as session:
        session.evaluate(text[:900])
        there = retrieval_of(session).passages
        wanted = session.last_logits()
        list(session.generate(Sampling(temperature=0), 20))
        dropped = session.dropped
        session.evaluate([*text[: 900 - count], *text[100 : 100 + count]])
        assert retrieval_of(session).passages == there
        assert session.evaluate(text[:900]).evaluated == count
        assert retrieval_of(session).passages == there
        assert session.dropped == dropped
        np.testing.assert_allclose(session.last_logits(), wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("policy", ["landmark", "compress"])
def test_passages_stay_for_the_answer(
    model: Model, text: list[int], policy: WhenFull
) -> None:
    """However full the context is when the question ends. compress lost them in the middle of one
    answer of five, and what it said then was wrong."""
    made = options(policy, evicted="kept", **SMALL)
    with Session(model, made) as session:
        rng = random.Random(1)
        for length in accumulate([500] + [rng.randrange(22, 60) for _ in range(20)]):
            session.evaluate(text[:length])
            for token in text[length : length + 20]:
                session.memory.make_room(1)
                session.memory.write(token)
            assert retrieval_of(session).passages is not None


def test_a_look_up_can_be_stopped(
    model: Model, text: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_BLOCK, 32)
    made = options("landmark", kv_type="f32", **SMALL)
    looked: list[int] = []
    whole = Outside._scores

    def stops(*given: object) -> object:
        looked.append(1)
        session.cancel()
        return whole(*given)  # type: ignore[arg-type]

    with Session(model, made) as session:
        session.evaluate(text[:900])
        with monkeypatch.context() as patch:
            patch.setattr(Outside, "_scores", stops)
            assert session.evaluate(text[:940]).cancelled
        assert len(looked) == 1
        assert retrieval_of(session).passages is None
        assert not session.evaluate(text[:940]).cancelled
        assert session.used + session.dropped == 940
        there = retrieval_of(session).passages
        assert there is not None
        assert (there.count, there.question_tokens) == (64, 32)


def test_products_are_computed_by_the_thread_that_asks(
    model: Model, text: list[int]
) -> None:
    """OpenBLAS's threads took twenty times the CPU time of a look-up on a busy machine."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(1001, 64)).astype(np.float32)
    matrix = rng.normal(size=(64, 64)).astype(np.float32)
    np.testing.assert_allclose(product(rows, matrix), rows @ matrix, atol=1e-4)
    large = rng.normal(size=(200_000, 64)).astype(np.float32)
    assert alone(lambda: product(large, matrix)) < 0.2
    with Session(model, options("landmark", **SMALL)) as session:
        session.evaluate(text[:900])
        outside = outside_of(session)
        rotation = session.cache.rotation()
        example = rotation.upright(
            session.cache.take(0, 1), rotation.layers.looked_through
        )
        queries = [np.repeat(keys, 64, 0).repeat(2, 1) for keys in example]
        keys = [np.repeat(keys, 20_000, 0) for keys in example]
        outside.add([0] * 20_000, keys)
        assert alone(lambda: outside.find(queries, 64)) < 0.2


def alone(work: Callable[[], object]) -> float:
    """The share of the CPU time that other threads of this process took."""
    assert threading.active_count() >= 1
    process, thread = time.process_time(), time.thread_time()
    work()
    mine = time.thread_time() - thread
    assert mine > 0.005
    return (time.process_time() - process - mine) / mine


@pytest.mark.parametrize("tokens", [1, 2, 9, 100])
def test_any_bound_is_kept(model: Model, text: list[int], tokens: int) -> None:
    made = options("landmark", evicted_memory=tokens * BYTES + 5, **SMALL)
    with Session(model, made) as session:
        session.evaluate(text[:900])
        outside, gone = outside_of(session), session.memory.gone
        assert tokens // 2 < len(outside) <= tokens
        assert outside._rows is not None
        assert len(outside) == len(outside._rows) == len(outside._tokens)
        assert outside.forgotten.count == gone.count - len(outside)
        assert list(session.generate(Sampling(temperature=0), 5))


def test_the_bound_is_a_number_of_bytes() -> None:
    with pytest.raises(UsageError, match="evicted_memory is 0, but must be a number"):
        MemoryOptions("landmark", evicted_memory=0)
