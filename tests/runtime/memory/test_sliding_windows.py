"""Memories of models with sliding windows: each layer's keys are turned as it rotates, and its
window sees what stands in it by place."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sliding_models import ARCHITECTURES, WINDOW, moving, some, windowed
from tiny_gguf import write_random

from ggext.errors import ModelError
from ggext.footprint.cache import Swa
from ggext.footprint.planner import Choices, Memories
from ggext.plan import PlanOptions, plan

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime import auto, state, store  # noqa: E402
from ggext.runtime.auto import open_session  # noqa: E402
from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions  # noqa: E402
from ggext.runtime.memory import WhenFull  # noqa: E402
from ggext.runtime.memory.options import Evicted  # noqa: E402
from ggext.runtime.prefixes import Prefixes  # noqa: E402

MOVING: tuple[tuple[WhenFull, Evicted | None], ...] = (
    ("stream", None),
    ("landmark", None),
    ("compress", None),
    ("compress", "kept"),
)
TEXT = some(random.Random("text"), 900)
KEY = {"the model file": "a"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    path = windowed(tmp_path_factory.mktemp("windows"), request.param)
    with Model.open(path) as model:
        assert model.n_swa == WINDOW
        yield model


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open(windowed(tmp_path_factory.mktemp("one"), "gemma3")) as model:
        yield model


def memory_of(policy: WhenFull, evicted: Evicted | None) -> dict[str, Any]:
    brings_back = policy == "landmark" or evicted == "kept"
    return {"evicted": evicted} | ({"retrieved": 64} if brings_back else {})


def alike(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.abs(first - second).max() < 1e-3 * np.ptp(second))


def test_every_layer_is_turned_as_it_rotates(model: Model) -> None:
    """A token by itself has the same keys everywhere but for their rotation."""
    with Cache(model, moving("stream")) as cache:
        assert cache.rotation_error() < 1e-4
        turns = cache.rotation()._turns
        if len({*turns}) > 1 and turns[0].head_dim == turns[-1].head_dim:
            cache.rotation()._turns = turns[-1:] * len(turns)
            assert cache.rotation_error() > 0.1


def after_a_drop(cache: Cache, *, by_llama_cpp: bool) -> np.ndarray:
    """The logits of a token after 64 of 200 others have left."""
    cache.append_all(TEXT[:200])
    if by_llama_cpp:
        cache.lib.llama_memory_seq_rm(cache._memory, 0, 4, 68)
        cache.lib.llama_memory_seq_add(cache._memory, 0, 68, -1, -64)
        del cache.tokens[4:68]
        cache.positions = [*range(136)]
    else:
        cache.drop(4, 68)
    cache.append(TEXT[200:201])
    return cache.logits().copy()


@pytest.mark.parametrize(
    ("arch", "right"),
    [
        ("gemma2", True),
        ("gemma3", True),
        ("cohere2", False),
        ("exaone4", False),
        ("smollm3", False),
    ],
)
def test_what_llama_cpp_s_own_shift_does(
    tmp_path: Path, arch: str, right: bool
) -> None:
    """With windows that hold every token its shift turns each layer by its table, and so it is an
    oracle; but it turns layers that do not rotate as well."""
    path = (
        write_random(tmp_path / "m.gguf", arch)
        if arch == "smollm3"
        else windowed(tmp_path, arch)
    )
    with (
        Model.open(path) as model,
        Cache(model, moving("stream")) as cache,
        Cache(model, moving("stream")) as other,
    ):
        ours = after_a_drop(cache, by_llama_cpp=False)
        theirs = after_a_drop(other, by_llama_cpp=True)
        upright = cache.rotation().upright(cache.take(100, 137))
        turned = other.rotation().upright(other.take(100, 137))
        if model.n_swa:
            # The last token was written over the first cell of the sliding layers.
            with pytest.raises(ModelError, match=r"different cells \(64, 63\)"):
                other.take(0, 137)
    assert alike(ours, theirs) is right
    apart = [
        np.abs(a - b).max() > 1e-3 * np.abs(b).max()
        for a, b in zip(upright, turned, strict=True)
    ]
    assert any(apart) is not right


def test_a_window_sees_what_stands_in_it_by_place(model: Model) -> None:
    """After tokens have left, the next one attends in sliding layers to the nearest `WINDOW` cells,
    itself among them, whatever they were next to before."""
    with Cache(model, moving("stream")) as cache:
        cache.append_all(TEXT[:200])
        cache.drop(4, 180)
        assert len(cache.tokens) == 24  # the first ones stand in the window now
        cache.append_all(TEXT[200:300])
        slides = [layer.slides for layer in cache.rotation().layers.layers]
        wanted = next_logits(cache, TEXT[300])
        for distance, seen in ((1, True), (WINDOW - 1, True), (WINDOW, False)):
            place = len(cache.tokens) - distance
            disturb(cache, place, slides, -4096)
            same = np.array_equal(next_logits(cache, TEXT[300]), wanted)
            assert same is not seen, distance
            disturb(cache, place, slides, -1 / 4096)
            np.testing.assert_array_equal(next_logits(cache, TEXT[300]), wanted)
        if not all(slides):
            disturb(cache, 2, [not slide for slide in slides], -4096)
            assert not np.array_equal(next_logits(cache, TEXT[300]), wanted)


def next_logits(cache: Cache, token: int) -> np.ndarray:
    """Those after one more token, which leaves again."""
    count = len(cache.tokens)
    cache.append_one(token)
    logits = cache.logits().copy()
    assert cache.cut(count) == count
    return logits


def disturb(cache: Cache, place: int, layers: list[bool], factor: float) -> None:
    """Multiplies the values of one cell in these layers, exactly by a power of 2."""
    end = len(cache.tokens)
    block = cache.take(place, end)
    values = []
    for rows, chosen in zip(block.values, layers, strict=True):
        numbers = rows.view("<f4").copy()
        if chosen:
            numbers[0] *= factor
        values.append(numbers.view("u1"))
    cache.remove(place, end)
    cache.put(replace(block, values=tuple(values)))


def test_the_first_tokens_are_there_when_the_window_comes_back_to_them(
    model: Model,
) -> None:
    """Of sliding layers llama.cpp writes, and might write over, what lies beyond the window."""
    with Cache(model, moving("stream")) as cache:
        cache.append_all(TEXT[:32])
        first = cache.take(0, 32)
        cache.append_all(TEXT[32:250])
        cache.drop(32, 200)
        again = cache.take(0, 32)
    for before, after in zip(
        (*first.keys, *first.values), (*again.keys, *again.values), strict=True
    ):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("policy", "evicted"), MOVING)
def test_a_long_text_is_read_and_cut_back(
    model: Model, policy: WhenFull, evicted: Evicted | None
) -> None:
    made = moving(policy, **memory_of(policy, evicted))
    with Session(model, made) as session:
        session.evaluate(TEXT)
        assert session.used + session.dropped == len(TEXT)
        cells = session.cache.take(0, 4096).positions
        assert cells.tolist() == [*range(len(cells))]
        before = session.last_logits()
        session.evaluate([*TEXT, *TEXT[:20]])
        session.evaluate(TEXT[:-1])
        session.evaluate(TEXT)
        if policy == "stream":
            assert alike(session.last_logits(), before)


@pytest.mark.parametrize(("policy", "evicted"), MOVING)
def test_a_kept_cache_goes_on_as_it_was(
    model: Model, policy: WhenFull, evicted: Evicted | None, tmp_path: Path
) -> None:
    """With the cells that no window sees now."""
    made = moving(policy, **memory_of(policy, evicted))
    path = tmp_path / "kv.bin"
    with Session(model, made) as session, Session(model, made) as other:
        session.evaluate(TEXT[:600])
        store.save(path, session, KEY)
        assert store.restore(path, other, KEY) == session.used
        for length in (605, 700, 900):
            for one in (session, other):
                one.evaluate(TEXT[:length])
            assert other.dropped == session.dropped
            assert alike(other.last_logits(), session.last_logits())


@pytest.mark.parametrize("swa", ["full", "small"])
def test_a_kept_cache_of_a_policy_that_moves_nothing_is_read_again(
    gemma3: Model, tmp_path: Path, swa: Swa
) -> None:
    """Whole windows need what it has not: llama.cpp wrote what the last token sees. Small ones go
    on."""
    made = replace(moving("stop", 1024), swa=swa)
    path = tmp_path / "kv.bin"
    with Session(gemma3, made) as session:
        session.evaluate(TEXT[:200])
        store.save(path, session, KEY)
    whole = replace(moving("stream", 1024), swa="full")
    with Session(gemma3, whole) as session:
        with pytest.raises(store.StateError, match="the text must be read again"):
            store.restore(path, session, KEY)
        assert session.evaluate(TEXT).evaluated == len(TEXT)
    with Session(gemma3, replace(whole, swa="small")) as session:
        assert store.restore(path, session, KEY) == 200
        assert session.evaluate(TEXT).evaluated == len(TEXT) - 200


@pytest.mark.parametrize(("policy", "evicted"), MOVING)
def test_random_cancels_never_part_tokens_and_cache(
    gemma3: Model, policy: WhenFull, evicted: Evicted | None
) -> None:
    rng = random.Random(policy)
    made = moving(policy, **memory_of(policy, evicted))
    with Session(gemma3, made) as session:
        for _ in range(12):
            timer = threading.Timer(rng.random() * 0.02, session.cancel)
            timer.start()
            length = rng.randrange(100, 900)
            prefill = session.evaluate(TEXT[:length])
            timer.join()
            session.resume()
            assert prefill.reused + prefill.evaluated == length or prefill.cancelled
            cells = session.cache.take(0, 4096).positions.tolist()
            assert set(session.cache.positions) <= set(cells)
            read = session.used + session.dropped
            assert session.tokens[4:] == tuple(TEXT[4 + session.dropped : read])


def test_a_text_that_left_its_context_comes_back(gemma3: Model) -> None:
    made = moving("stream")
    with Session(gemma3, made, Prefixes()) as session, Session(gemma3, made) as other:
        session.evaluate(TEXT[:600])
        assert session.evaluate(TEXT[700:800]).reused == 0
        assert session.evaluate(TEXT[:610]).reused >= 590
        other.evaluate(TEXT[:600])
        other.evaluate(TEXT[:610])
        assert alike(session.last_logits(), other.last_logits())
        assert len(session.cache.take(0, 256)) == session.used


def test_self_extend_groups_what_no_window_sees(gemma3: Model) -> None:
    with Session(gemma3, moving("self-extend", 900, group=4)) as session:
        session.evaluate(TEXT[:800])
        assert len(session.cache.take(0, 4096)) == 800


def test_a_small_cache_has_not_what_must_be_moved(gemma3: Model) -> None:
    """Why the cells of small windows are taken by themselves: there are others of them."""
    made = SessionOptions(n_ctx=1024, n_batch=32, swa="small")
    with Cache(gemma3, made) as cache:
        cache.append_all(TEXT[:800])
        with pytest.raises(
            ModelError, match=r"sections of different cells \(800, 64\)"
        ):
            state.parse(cache.snapshot().tobytes())


def test_small_windows_are_counted_with_the_second_sequence(gemma3: Model) -> None:
    with Session(gemma3, moving("landmark", 2048)) as session:
        assert not session.cache._plan.whole_windows
        assert not session.cache.notices
    free = Memories(1 << 34)
    kept, half = (
        plan(gemma3.path, PlanOptions(4096, 0, Choices("f16", 32, moves=True)), free),
        plan(gemma3.path, PlanOptions(8192, 0, Choices("f16", 32), keep=0.5), free),
    )
    plain = plan(gemma3.path, PlanOptions(4096, 0, Choices("f16", 512)), free)
    assert half.ram.cache == kept.ram.cache < plain.ram.cache
    assert not half.context.whole_windows


def test_small_windows_do_not_change_which_policy_is_chosen(
    gemma3: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_PATIENCE", 0.0)
    monkeypatch.setattr(Model, "chat_template", "a template")
    for n_ctx, small in ((2048, True), (256, False)):
        made = SessionOptions(n_ctx=n_ctx, n_batch=32)
        session, chosen = open_session(gemma3, made, Prefixes())
        with session:
            assert chosen.policy == "stream"
            assert session.cache.cells.small is small


def test_a_long_text_gets_landmark_where_the_policy_is_chosen(gemma3: Model) -> None:
    made = SessionOptions(n_ctx=512, n_batch=32, memory=MemoryOptions())
    session, chosen = open_session(gemma3, made, Prefixes(), 5000)
    with session:
        assert chosen.policy == session.options.memory.when_full == "landmark"
        session.evaluate(TEXT)
        assert session.dropped > 300
