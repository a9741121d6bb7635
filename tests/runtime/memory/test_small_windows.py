"""Policies that move cells over small windows: as over whole ones where what stays is longer than a
window, and else the window of the text."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from sliding_models import WINDOW, moving, some, windowed
from tiny_gguf import write_random

from ggext.errors import ModelError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime import store  # noqa: E402
from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.engine import Model, Sampling, Session, SessionOptions  # noqa: E402
from ggext.runtime.memory import WhenFull  # noqa: E402
from ggext.runtime.memory.compress import Compress  # noqa: E402
from ggext.runtime.prefixes import Prefixes  # noqa: E402
from ggext.runtime.state import HEAD_BYTES  # noqa: E402

#: Those of whose layers some see everything.
ARCHITECTURES = ("cohere2", "exaone4", "gemma2", "gemma3", "gemma4", "gpt-oss")
#: What is kept of the most recent tokens is more than a window with each of these.
MOVING: tuple[tuple[WhenFull, dict[str, Any]], ...] = (
    ("stream", {}),
    ("landmark", {"retrieved": 96}),
    ("compress", {}),
    ("compress", {"evict": 120, "evicted": "kept", "retrieved": 96}),
    ("self-extend", {"group": 4}),
)
KEY = {"the model file": "a"}
TEXT = some(random.Random("small"), 1500)
#: Read, went on, cut in the last question and far back, asked again.
LENGTHS = (400, 750, 760, 755, 1000, 900, 1300)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open(windowed(tmp_path_factory.mktemp("small"), "gemma3")) as model:
        yield model


def options(when_full: WhenFull, memory: dict[str, Any], swa: str) -> SessionOptions:
    n_ctx = 1400 if when_full == "self-extend" else 700
    made = moving(when_full, n_ctx, **memory)
    return replace(made, swa=swa)  # type: ignore[arg-type]


class Pair:
    """A session with small windows, and one with whole ones that is asked the same."""

    def __init__(
        self, model: Model, when_full: WhenFull, memory: dict[str, Any]
    ) -> None:
        self.reads = self.again = 0
        self.small = Session(model, options(when_full, memory, "small"))
        self.whole = Session(model, options(when_full, memory, "full"))
        assert self.small.cache.cells.small
        if isinstance(self.small.memory, Compress):
            assert isinstance(self.whole.memory, Compress)
            # It keeps more of the most recent tokens, lest a window has others.
            self.whole.memory._in_window = self.small.memory._in_window
            self._shares_scores(self.small.memory, self.whole.memory)

    def _shares_scores(self, small: Compress, whole: Compress) -> None:
        """Of two tokens that stand out alike the last bits would choose."""
        scores, there = small._scores, whole._scores
        made: list[Any] = []

        def first(sums: Any) -> Any:
            made.append(scores(sums))
            return made[-1]

        def second(sums: Any) -> Any:
            ours = made.pop(0)
            for one, other in zip(ours, there(sums), strict=True):
                assert np.abs(one - other).max() < 1e-3 * np.ptp(other)
            return ours

        small._scores, whole._scores = first, second  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.again <= self.reads / 2
        self.small.close()
        self.whole.close()

    def read(self, tokens: list[int], stop_at: int | None = None) -> None:
        """Both, as far as `stop_at` of the tokens that are to be read. Where small windows have no
        copy for a cut and more of the text is read again, it is by both: what stood in the cache
        then is in the values of later tokens."""
        could = self.whole.holds(tokens)
        reused = self._read(self.small, tokens, stop_at)
        self.reads += 1
        self.again += reused < could - 1
        if reused < could:
            self.whole.memory.cut(max(reused - self.whole.dropped, 0))
        assert self._read(self.whole, tokens, stop_at) == reused

    def _read(self, session: Session, tokens: list[int], stop_at: int | None) -> int:
        """How many tokens needed no reading."""

        def progress(done: int, _: int) -> None:
            if stop_at is not None and done >= stop_at:
                session.cancel()

        reused = session.evaluate(tokens, progress).reused
        session.resume()
        return reused

    @property
    def apart(self) -> float:
        """Of the logits, as a share of their range."""
        small, whole = self.small.last_logits(), self.whole.last_logits()
        return float(np.abs(small - whole).max() / np.ptp(whole))

    def check(self) -> None:
        assert self.small.tokens == self.whole.tokens
        assert self.small.cache.positions == self.whole.cache.positions
        assert self.small.dropped == self.whole.dropped
        assert self.apart < 1e-3
        check_window(self.small.cache)


def check_window(cache: Cache) -> None:
    """Its cells are at positions in a row up to the last token, and reach back far enough."""
    places = cache.cells.sliding().positions
    last = cache.positions[-1]
    assert places.tolist() == [*range(places[0], last + 1)]
    assert places[0] <= max(last + 1 - WINDOW, 0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_small_windows_give_the_logits_of_whole_ones(tmp_path: Path, arch: str) -> None:
    with Model.open(windowed(tmp_path, arch)) as model:
        for when_full, memory in MOVING:
            with Pair(model, when_full, memory) as pair:
                for length in LENGTHS:
                    pair.read(TEXT[:length])
                    pair.check()


@pytest.mark.parametrize(("when_full", "memory"), MOVING)
def test_random_edits_and_answers_give_the_logits_of_whole_windows(
    gemma3: Model, when_full: WhenFull, memory: dict[str, Any]
) -> None:
    rng = random.Random(f"{when_full} {memory}")
    text = TEXT[:800]
    with Pair(gemma3, when_full, memory) as pair:
        for _ in range(10):
            how = rng.choice(["on", "on", "cut", "near", "answer", "middle"])
            at = rng.randrange(1, len(text) + 1)
            if how == "on":
                text = text + some(rng, rng.choice([1, 20, 150]))
            elif how == "cut":
                text = text[:at]
            elif how == "near":
                text = [*text[:-7], *some(rng, 3)]
            elif how == "middle":
                text = [*text[: at - 1], *some(rng, 3), *text[at:]]
            text = text[:1300]
            pair.read(text)
            pair.check()
            if how == "answer":
                sampling = Sampling(temperature=3, seed=at)
                answer = [*pair.small.generate(sampling, 90)]
                text = [*text, *answer]
                for token in answer:
                    assert pair.whole.memory.make_room(1)
                    assert pair.whole.memory.write(token)


@pytest.mark.parametrize(("when_full", "memory"), MOVING)
def test_a_cancel_at_every_step_leaves_what_goes_on(
    gemma3: Model, when_full: WhenFull, memory: dict[str, Any]
) -> None:
    with Pair(gemma3, when_full, memory) as pair:
        for stop_at in range(0, 900, 160):
            pair.read(TEXT[:300])
            pair.read(TEXT[:1200], stop_at)
            assert pair.small.tokens == pair.whole.tokens
            pair.read(TEXT[:1200])
            pair.check()


@pytest.mark.parametrize(("when_full", "memory"), MOVING)
def test_a_cancel_in_the_middle_of_a_batch_leaves_a_window_in_step(
    gemma3: Model, when_full: WhenFull, memory: dict[str, Any]
) -> None:
    rng = random.Random(when_full)
    with Session(gemma3, options(when_full, memory, "small")) as session:
        for _ in range(12):
            timer = threading.Timer(rng.random() * 0.03, session.cancel)
            timer.start()
            session.evaluate(TEXT[: rng.randrange(100, 1300)])
            timer.join()
            session.resume()
            if session.used:
                check_window(session.cache)
            cells = session.cache.take(0, 4096).positions.tolist()
            assert set(session.cache.positions) <= set(cells)


@pytest.mark.parametrize(("when_full", "memory"), MOVING[:4])
@pytest.mark.parametrize("by", ["store", "prefixes"])
def test_a_kept_cache_goes_on_as_whole_windows_do(
    gemma3: Model, when_full: WhenFull, memory: dict[str, Any], by: str, tmp_path: Path
) -> None:
    """Passages that are in it leave, and what stood before them is seen again."""
    prefixes = Prefixes()
    with Pair(gemma3, when_full, memory) as pair:
        pair.read(TEXT[:800])
        if by == "store":
            store.save(tmp_path / "kv.bin", pair.small, KEY)
            pair.small.evaluate(some(random.Random("other"), 50))
            store.restore(tmp_path / "kv.bin", pair.small, KEY)
        else:
            pair.small.prefixes = prefixes
            pair.small.evaluate(some(random.Random("other"), 50))
            assert pair.small.evaluate(TEXT[:800]).reused >= 790
            pair.small.prefixes = None
        for length in (801, 790, 820, 1200):
            pair.read(TEXT[:length])
            pair.check()


@pytest.mark.parametrize("when_full", ["stream", "landmark"])
def test_a_cache_that_was_kept_with_whole_windows_is_cut_to_small_ones(
    gemma3: Model, when_full: WhenFull, tmp_path: Path
) -> None:
    """As an earlier ggext kept it; the other way round there are too few cells."""
    memory = {"retrieved": 96} if when_full == "landmark" else {}
    path = tmp_path / "kv.bin"
    with Pair(gemma3, when_full, memory) as pair:
        pair.whole.evaluate(TEXT[:800])
        store.save(path, pair.whole, KEY)
        store.restore(path, pair.small, KEY)
        if when_full == "stream":
            pair.read(TEXT[:900])
            pair.check()
        pair.small.evaluate(TEXT[:900])
        store.save(path, pair.small, KEY)
        with pytest.raises(store.StateError, match="the text must be read again"):
            store.restore(path, pair.whole, KEY)


def test_a_window_of_a_stranger_s_file_is_checked(gemma3: Model) -> None:
    with Session(gemma3, options("landmark", {"retrieved": 96}, "small")) as session:
        session.evaluate(TEXT[:800])
        memory: Any = session.memory
        account, (block,) = memory.account(), memory.blocks_outside()
        size = account["window"]
        places = struct.unpack_from("<IIiI", block, len(block) - size + HEAD_BYTES)
        assert places[:2] == (1, WINDOW)
        at = len(block) - size + HEAD_BYTES + 8
        elsewhere = block[:at] + struct.pack("<i", places[2] + 1) + block[at + 4 :]
        wrong = [(stated, block) for stated in (-1, len(block) + 1, "1", None, 0)]
        wrong += [(size, block[:-size] + bytes(size)), (size, elsewhere)]
        wrong += [(size - 4, block[:-4]), (0, block[:-4])]
        for stated, data in wrong:
            with pytest.raises(ModelError):
                memory.resume(account | {"window": stated}, iter([memoryview(data)]))
        memory.resume(account, iter([memoryview(block)]))


def test_where_little_stays_a_window_is_that_of_the_text(gemma3: Model) -> None:
    """compress keeps a few recent tokens; the layers with a window go on to see the last ones, also
    those that have left the others."""
    made = options("compress", {"evict": 40}, "small")
    with Session(gemma3, made) as session:
        session.evaluate(TEXT[:500])
        before = session.cache.cells.sliding()
        end = session.cache.next_position
        session.memory.reduce(100)  # type: ignore[attr-defined]
        assert len(session.tokens) < WINDOW
        cache = session.cache
        after = cache.cells.sliding()
        moved = cache.next_position - end
        assert moved < 0
        shared = before.cells(slice(-len(after), None))
        assert after.positions.tolist() == [p + moved for p in shared.positions]
        upright = cache.rotation().upright
        for ours, theirs in zip(upright(after), upright(shared), strict=True):
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
        for ours, theirs in zip(after.values, shared.values, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_small_windows_of_llama_4_and_of_all_layers_stay_whole(tmp_path: Path) -> None:
    keys = {"llama4.context_length": 1 << 20}
    path = write_random(tmp_path / "llama4.gguf", "llama4", extra_keys=keys)
    for file, why, n_ctx in (
        (path, "begin again at each multiple of their size", 1 << 17),
        (windowed(tmp_path, "olmo2"), "are those of all layers", 2048),
    ):
        with Model.open(file) as model:
            made = moving("stream", n_ctx)
            with pytest.raises(ModelError, match=f"small windows that {why} cannot"):
                Session(model, replace(made, swa="small"))
            if n_ctx > 1 << 16:
                continue
            with Session(model, made) as session:
                assert session.cache._plan.whole_windows
                assert session.notices[-1] == (
                    "layers with a sliding window keep every token of the context, for stream "
                    f"moves cells, and small windows that {why} cannot follow"
                )


def test_a_text_that_moved_is_cut_back_to_copies(gemma3: Model) -> None:
    """And what is counted as read again is what the copies did not hold."""
    with Pair(gemma3, "stream", {}) as pair:
        pair.read(TEXT[:1000])
        for cut in (997, 900, 850, 800):
            text = [*TEXT[:cut], 7]
            pair.small.evaluate(text)
            pair.whole.evaluate(text)
            pair.check()
