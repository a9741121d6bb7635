"""What stands out stays: compress against KeyDiff and against attention."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from full_contexts import options

from ggext.data import demo_language as language

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.runtime.engine import Model, Session  # noqa: E402
from ggext.runtime.memory.compress import Compress  # noqa: E402
from ggext.runtime.rotation import KeyRotation  # noqa: E402
from ggext.runtime.state import KvBlock  # noqa: E402


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


def unlike(layers: list[np.ndarray], sums: list[np.ndarray]) -> np.ndarray:
    """KeyDiff by its definition, one key at a time: how little each is like the direction of its
    head's sum, standardized, the mean over layers and heads."""
    scores = []
    for keys, total in zip(layers, sums, strict=True):
        for head in range(keys.shape[1]):
            mean = total[head] / np.linalg.norm(total[head])
            each = [
                -(key @ mean) / np.linalg.norm(key)
                for key in keys[:, head].astype(np.float64)
            ]
            scores.append((each - np.mean(each)) / np.std(each))
    return np.mean(scores, axis=0)


def sums_of(layers: list[np.ndarray]) -> list[np.ndarray]:
    """The sum of all keys of each head, each of length 1."""
    wide = [keys.astype(np.float64) for keys in layers]
    return [
        (keys / np.linalg.norm(keys, axis=2, keepdims=True)).sum(axis=0)
        for keys in wide
    ]


def smoothed(each: np.ndarray) -> np.ndarray:
    """Weighted means over eight neighbours on each side, the ends repeated; a normal distribution's
    weights with a standard deviation of 2.5 tokens."""
    wide = np.r_[[each[0]] * 8, each, [each[-1]] * 8]
    weights = [math.exp(-(far**2) / 12.5) for far in range(-8, 9)]
    return np.array(
        [np.dot(weights, wide[i : i + 17]) / sum(weights) for i in range(len(each))]
    )


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def test_compress_keeps_whole_tokens_that_stand_out(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("compress", kv_type="f32")) as session:
        session.evaluate(text[:256])
        memory, rotation = session.memory, session.cache.rotation()
        assert isinstance(memory, Compress)
        before = session.cache.take(4, 256)
        session.memory.make_room(1)
        # 32 leave at once; the last 16 are not touched
        assert (len(session.tokens), memory.selected, session.dropped) == (20, 204, 236)
        assert session.cache.positions == [*range(4), *range(208, 224)]
        keys = rotation.upright(before)
        chosen = highest(smoothed(unlike(keys, sums_of(keys)))[:236], 204)
        after = session.cache.take(4, 224)
        assert after.positions.tolist() == [*range(4, 224)]
        assert_same_cells(rotation, before.cells(np.r_[chosen, 236:252]), after)


def assert_same_cells(rotation: KeyRotation, before: KvBlock, after: KvBlock) -> None:
    """They are of the same tokens, wherever those stand."""
    for there, here in zip(before.values, after.values, strict=True):
        np.testing.assert_array_equal(there, here)
    upright = rotation.upright(before), rotation.upright(after)
    for there, here in zip(*upright, strict=True):
        np.testing.assert_allclose(there, here, atol=1e-4)


def test_a_second_choice_is_made_among_all_that_was_read(
    model: Model, text: list[int]
) -> None:
    """The mean is that of all keys, also of those that left, and neighbours are those that a token
    was read with, not those to which it closed up."""
    with Session(model, options("compress", kv_type="f32", evict=64)) as session:
        memory, rotation = session.memory, session.cache.rotation()
        assert isinstance(memory, Compress)
        session.evaluate(text[:256])
        first = rotation.upright(session.cache.take(4, 256))
        memory.make_room(1)
        session.evaluate(text[:320])
        second = session.cache.take(4, 256)
        keys = rotation.upright(second)
        memory.make_room(1)
        after = session.cache.take(4, 192)

        own = unlike(first, sums_of(first))
        chosen = highest(smoothed(own)[:220], 156)
        new = sums_of([layer[-64:] for layer in keys])
        everything = [a + b for a, b in zip(sums_of(first), new, strict=True)]
        now = unlike(keys, everything)
        moved = smoothed(now[:156] - own[chosen])
        scores = np.r_[smoothed(own)[chosen] + moved, smoothed(now[156:])]
        stay = np.r_[highest(scores[:220], 156), 220:252]
        assert_same_cells(rotation, second.cells(stay), after)


def test_reading_in_pieces_keeps_what_one_choice_keeps(model: Model) -> None:
    """1,500 tokens, chosen from once and chosen from each time that 256 cells are full. (With the
    mean and the neighbours of what was in the cache 84 of 100 tokens were the same.)"""
    same = []
    for number in range(4):
        rng = random.Random(f"pieces {number}")
        facts = language.facts(rng, language.RECALL_FACTS)
        words = f"{language.BOS}{language.USER}{language.document(rng, facts, 1498)}"
        tokens = model.tokenize(words, add_special=False, parse_special=True)
        stays = []
        for n_ctx in (1600, 256):
            with Session(model, options("compress", n_ctx, evict=64)) as session:
                places = places_that_stay(session)
                session.evaluate(tokens)
                session.memory.reduce(180)  # type: ignore[attr-defined]
                stays.append({*places()})
        assert len(stays[0]) == len(stays[1]) == 144
        same.append(len(stays[0] & stays[1]) / 144)
    assert np.mean(same) > 0.9


def places_that_stay(session: Session) -> Callable[[], list[int]]:
    """Which tokens of the text, counted after the first ones, are in the cells in between."""
    cache, places = session.cache, list[int]()
    condense = cache.condense

    def watched(start: int, end: int, extra: int, chosen: Any) -> None:
        nonlocal places
        at = session.dropped - (end - start)
        places = [[*places, *range(at, session.dropped)][i] for i in chosen]
        condense(start, end, extra, chosen)

    cache.condense = watched  # type: ignore[method-assign]
    return lambda: places


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
        cells = session.cache.take(0, 224)
        session.memory.write(text[256])
        other.cache.put(cells)
        other.cache.tokens, other.cache.positions = [0] * 224, [*range(224)]
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
        assert (session.used, memory.selected) == (20, 0)
        assert session.evaluate(text[:300]).reused == 200
