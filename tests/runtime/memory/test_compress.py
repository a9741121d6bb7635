"""What stands out stays: compress against KeyDiff and against attention."""

from __future__ import annotations

import pytest
from full_contexts import options

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.runtime.engine import Model, Session  # noqa: E402
from ggext.runtime.memory.compress import Compress  # noqa: E402


def test_compress_loses_nothing_before_the_context_is_full(
    model: Model, text: list[int]
) -> None:
    with (
        Session(model, options("compress", 512, kv_type="f32")) as session,
        Session(model, options("stop", 512, kv_type="f32")) as whole,
    ):
        assert session.evaluate(text[:512]).evaluated == 512
        whole.evaluate(text[:512])
        assert session.dropped == 0
        np.testing.assert_array_equal(session.last_logits(), whole.last_logits())


def keydiff(layers: list[np.ndarray]) -> np.ndarray:
    """KeyDiff by its definition, one key at a time: mean over layers and heads of the standardized
    unlikeness, then over nine neighbours."""
    scores = []
    for keys in layers:
        for head in range(keys.shape[1]):
            unit = [
                key / np.linalg.norm(key) for key in keys[:, head].astype(np.float64)
            ]
            mean = np.mean(unit, axis=0)
            unlike = np.array([-(key @ mean) / np.linalg.norm(mean) for key in unit])
            scores.append((unlike - unlike.mean()) / unlike.std())
    each = np.mean(scores, axis=0)
    ends = [each[0]] * 4, [each[-1]] * 4
    return np.array(
        [np.mean(np.r_[ends[0], each, ends[1]][i : i + 9]) for i in range(len(each))]
    )


def test_compress_keeps_whole_tokens_that_stand_out(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("compress", kv_type="f32")) as session:
        session.evaluate(text[:256])
        memory, rotation = session.memory, session.cache.rotation()
        assert isinstance(memory, Compress)
        before = session.cache.take(4, 256)
        session.memory.make_room(1)
        # 64 leave at once; the last 32 are not touched
        assert (len(session.tokens), memory.selected, session.dropped) == (36, 156, 220)
        assert session.cache.positions == [*range(4), *range(160, 192)]
        chosen = np.sort(
            np.argsort(-keydiff(rotation.upright(before))[:220], kind="stable")[:156]
        )
        after = session.cache.take(4, 192)
        stays = before.cells(np.r_[chosen, 220:252])
        assert after.positions.tolist() == [*range(4, 192)]
        for there, here in zip(stays.values, after.values, strict=True):
            np.testing.assert_array_equal(there, here)
        for there, here in zip(
            rotation.upright(stays), rotation.upright(after), strict=True
        ):
            np.testing.assert_allclose(there, here, atol=1e-4)


def test_what_compress_keeps_is_what_the_answer_attends_to(
    model: Model, text: list[int]
) -> None:
    """The logits are those of a cache that never had anything but the chosen cells."""
    with (
        Session(model, options("compress", kv_type="f32")) as session,
        Session(model, options("stream", kv_type="f32")) as other,
    ):
        session.evaluate(text[:256])
        session.memory.make_room(1)
        cells = session.cache.take(0, 192)
        session.memory.write(text[256])
        other.cache.put(cells)
        other.cache.tokens, other.cache.positions = [0] * 192, [*range(192)]
        other.cache.append_one(text[256])
        np.testing.assert_allclose(
            session.last_logits(), other.last_logits(), atol=1e-4
        )


def test_compress_reads_what_comes_after_in_the_cells_that_it_freed(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("compress")) as session:
        memory = session.memory
        assert isinstance(memory, Compress)
        for length in range(100, 1400, 100):
            session.evaluate(text[:length])
            assert session.used + session.dropped == length
            assert session.used + memory.selected <= 256
            cells = session.cache.take(0, 4096).positions.tolist()
            assert cells == [*range(session.used + memory.selected)]
        assert session.evaluate([*text[:1300], 5]).reused == 1300
        assert session.evaluate(text[:40]).reused == 4
        assert memory.selected == 0


def test_compress_now(model: Model, text: list[int]) -> None:
    """Before the context is full, to any number of cells."""
    with Session(model, options("compress")) as session:
        memory = session.memory
        assert isinstance(memory, Compress)
        session.evaluate(text[:200])
        memory.reduce(200)
        assert session.dropped == 0
        memory.reduce(100)
        assert session.used + memory.selected == 100
        assert session.used + session.dropped == 200
        memory.reduce(0)
        assert (session.used, memory.selected) == (36, 0)
        assert session.evaluate(text[:300]).reused == 200
