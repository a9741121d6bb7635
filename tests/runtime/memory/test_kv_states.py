"""The cells of a cache as bytes: read as they were written, or refused."""

from __future__ import annotations

import random

import pytest
from full_contexts import options

from ggext.errors import ModelError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.runtime import state  # noqa: E402
from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions  # noqa: E402


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("flash", [False, True])
def test_a_state_reads_as_it_was_written(
    model: Model, text: list[int], kv_type: str, flash: bool
) -> None:
    made = SessionOptions(
        n_ctx=256,
        kv_type=kv_type,
        flash_attention=flash,
        memory=MemoryOptions("stream"),
    )
    with Cache(model, made) as cache:
        cache.append(text[:50])
        block = cache.take(10, 40)
        assert block.positions.tolist() == list(range(10, 40))
        assert block.form.transposed is not flash
        assert (
            state.parse(state.build(block, 0)).cells(slice(None)).values[2].tolist()
            == block.values[2].tolist()
        )
        cache.remove(10, 40)
        cache.put(block)
        assert cache.append([5])
        again = cache.take(10, 40)
    for first, second in zip(
        (*block.keys, *block.values), (*again.keys, *again.values), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_a_state_that_is_cut_or_changed_is_refused(
    model: Model, text: list[int]
) -> None:
    with Cache(model, options("stream")) as cache:
        cache.append(text[:5])
        data = bytearray(state.build(cache.take(0, 5), 1))
    assert len(state.parse(data)) == 5
    for size in range(0, len(data), 7):
        with pytest.raises(ModelError, match="cannot edit"):
            state.parse(data[:size])
    rng = random.Random(0)
    for _ in range(300):
        hostile = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            hostile[rng.randrange(len(hostile) if rng.random() < 0.3 else 120)] = (
                rng.randrange(256)
            )
        try:
            state.parse(hostile)
        except ModelError:
            continue


def test_a_state_of_another_form_is_told_at_the_first_move(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("stream")) as session:
        session.cache.cells._read_scratch = lambda _: state.parse(b"\0" * 64)  # type: ignore[method-assign]
        with pytest.raises(
            ModelError, match="keeps its cache in a form that ggext cannot edit"
        ):
            session.evaluate(text[:300])


def test_what_is_written_and_reads_otherwise_is_refused(
    model: Model, text: list[int]
) -> None:
    with Cache(model, options("stream")) as cache:
        cache.append(text[:20])
        block = cache.take(0, 20)
        cache.cells._read_scratch = lambda _: block.cells(slice(0, 19))  # type: ignore[method-assign]
        with pytest.raises(ModelError, match="does not read as it was written"):
            cache.put(block)
