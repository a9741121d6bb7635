"""Layers with a sliding window in a small cache: what they forget is put back or read again, and is
never wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_random

from ggext.errors import ModelError, UsageError
from ggext.footprint.cache import CHECKPOINTS, whole_windows
from ggext.footprint.planner import Choices, Memories

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime import capacity, store  # noqa: E402
from ggext.runtime.auto import open_session  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session, SessionOptions  # noqa: E402
from ggext.runtime.prefixes import Prefixes  # noqa: E402
from ggext.runtime.window_copies import Checkpoint, Checkpoints  # noqa: E402

WINDOW = 64
ARCHITECTURES = ("cohere2", "gemma2", "gemma3", "gpt-oss", "olmo2")
KEY = {"the model file": "a"}


def windowed(folder: Path, arch: str) -> Path:
    keys = {f"{arch}.attention.sliding_window": WINDOW, f"{arch}.context_length": 4096}
    return write_random(folder / f"{arch}.gguf", arch, extra_keys=keys)


def options(**changed: Any) -> SessionOptions:
    """Small windows; 32-bit values, so that batches of another size round alike."""
    return SessionOptions(
        **{"n_ctx": 2048, "n_batch": 32, "kv_type": "f32", "swa": "small"} | changed
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open(windowed(tmp_path_factory.mktemp("windows"), "gemma3")) as model:
        yield model


def some(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 300) for _ in range(count)]


TEXT = some(random.Random("text"), 2000)


def same(session: Session, fresh: Session) -> bool:
    """Whether the logits are those of the same tokens in an empty cache."""
    fresh.clear()
    fresh.evaluate(session.tokens)
    wanted = fresh.last_logits()
    return bool(np.abs(session.last_logits() - wanted).max() < 1e-3 * np.ptp(wanted))


def edited(rng: random.Random, text: list[int], before: list[list[int]]) -> list[int]:
    """The text after what people do to a chat: going on, cutting, changing the middle, undoing."""
    at = rng.randrange(1, len(text) + 1)
    how = rng.choice(["on", "on", "on", "cut", "middle", "undo", "again"])
    if how == "on":
        text = text + some(rng, rng.choice([1, 20, 100, 400]))
    elif how == "cut":
        text = text[:at]
    elif how == "middle":
        text = [*text[: at - 1], *some(rng, 3), *text[at:]]
    elif how == "undo":
        text = rng.choice(before[-4:])
    return text[:900]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_random_edits_give_the_logits_of_a_fresh_evaluation(
    tmp_path: Path, arch: str
) -> None:
    rng = random.Random(arch)
    with (
        Model.open(windowed(tmp_path, arch)) as model,
        Session(model, options()) as session,
    ):
        assert model.n_swa == WINDOW
        text, before, reused, length = some(rng, 300), [[5]], 0, 0
        with Session(model, options(swa="full", n_batch=128)) as fresh:
            for step in range(15):
                prefill = session.evaluate(text)
                assert prefill.reused + prefill.evaluated == len(text)
                assert same(session, fresh), (step, len(text), prefill)
                reused, length = reused + prefill.reused, length + len(text)
                before.append(text)
                if rng.random() < 0.3:
                    text = [
                        *text,
                        *session.generate(
                            Sampling(temperature=2, seed=step), rng.choice([3, 80, 200])
                        ),
                    ]
                    assert list(session.tokens) == text[: len(session.tokens)]
                text = edited(rng, text, before)
    assert reused > 0.4 * length  # not by reading everything again


def test_a_text_that_left_its_context_comes_back_with_what_windows_forgot(
    model: Model,
) -> None:
    """Half of it is cut, so its windows are those of an earlier place, of which there is a copy."""
    text, other = TEXT[:600], TEXT[1000:1100]
    with (
        Session(model, options(), Prefixes()) as session,
        Session(model, options()) as fresh,
    ):
        session.evaluate(text)
        assert session.evaluate(other).reused == 0
        assert session.evaluate([*text[:300], *other]).reused >= 200
        assert same(session, fresh)


def test_a_long_text_gets_landmark_in_a_small_cache_where_the_policy_is_chosen(
    model: Model,
) -> None:
    session, chosen = open_session(model, options(n_ctx=512), Prefixes(), 5000)
    with session:
        assert chosen.policy == session.options.memory.when_full == "landmark"
        assert session.cache.cells.small
        session.evaluate(TEXT)
        assert session.dropped > 1000


def test_windows_that_begin_anew_are_cut_back_exactly(tmp_path: Path) -> None:
    """Llama 4 attends within chunks of 8,192 tokens, which no key of the file says."""
    tokens = some(random.Random("chunks"), 8800)
    path = write_random(
        tmp_path / "llama4.gguf", "llama4", extra_keys={"llama4.context_length": 32768}
    )
    with Model.open(path) as model:
        assert model.n_swa == 8192
        with Session(model, options(n_ctx=9216, n_batch=256, swa="full")) as whole:
            wanted = np.concatenate([rows.copy() for rows in whole.logit_rows(tokens)])
        with Session(model, options(n_ctx=9216, n_batch=256)) as session:
            for count, most in (
                (8800, 8800),
                (8799, 1),
                (8800, 1),
                (8500, 309),
                (8498, 1),
                (8193, 300),
            ):
                prefill = session.evaluate(tokens[:count])
                assert prefill.evaluated <= most, count
                apart = np.abs(session.last_logits() - wanted[count - 1]).max()
                assert apart < 1e-3 * np.ptp(wanted[count - 1]), count


def test_what_a_window_that_begins_anew_needs() -> None:
    chunked = Checkpoints(64, 4, chunked=True)
    assert [chunked.needed(count) for count in (0, 63, 64, 127, 128)] == [
        0,
        0,
        64,
        64,
        128,
    ]
    assert chunked.covers(64, 70)
    assert not chunked.covers(65, 70)
    assert not chunked.covers(64, 63)
    assert not Checkpoints(64, 4).covers(64, 70)


def test_without_what_was_kept_aside_the_same_cut_is_wrong(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What llama.cpp does by itself; so the comparison above can fail."""
    with (
        Session(model, options()) as session,
        Session(model, options(swa="full")) as fresh,
    ):
        monkeypatch.setattr("ggext.runtime.cache.Cache._back", lambda _, count: count)
        session.evaluate(TEXT)
        session.evaluate([*TEXT[:1000], 7])
        assert not same(session, fresh)


def test_a_chat_goes_on_asks_again_and_undoes_without_reading_again(
    model: Model,
) -> None:
    with (
        Session(model, options()) as session,
        Session(model, options(swa="full")) as fresh,
    ):
        session.evaluate(TEXT[:1000])
        answer = list(session.generate(Sampling(temperature=2, seed=1), 200))
        second = [*TEXT[:1000], *answer, *TEXT[1200:1240]]
        assert session.evaluate(second).evaluated <= 41
        for _ in session.generate(Sampling(temperature=2, seed=2), 200):
            pass
        for wanted, most in (
            (second, 1),  # another answer to the same question
            (
                [*second[:-40], 7, 8, 9],
                4,
            ),  # another question, after an answer whose last token no one asked on from
            ([*TEXT[:1000], 7], 1),  # instead of the first answer
        ):
            assert session.evaluate(wanted).evaluated <= most
            assert same(session, fresh)
        assert (
            session.evaluate([*TEXT[:700], 7]).evaluated < 300
        )  # in the middle of what was read at once
        assert same(session, fresh)


def test_the_cache_itself_is_used_where_it_still_has_the_window(model: Model) -> None:
    with (
        Session(model, options(n_batch=256)) as session,
        Session(model, options(swa="full")) as fresh,
    ):
        session.cache.checkpoints.most = 0
        session.evaluate(TEXT[:300])
        assert session.evaluate([*TEXT[:150], 7]).reused == 150
        assert same(session, fresh)
        session.evaluate(TEXT[:1500])
        assert session.evaluate([*TEXT[:150], 7]).reused == 0
        assert same(session, fresh)


def test_random_cancels_leave_a_cache_that_goes_on_as_a_fresh_one(model: Model) -> None:
    rng = random.Random("cancel")
    with (
        Session(model, options()) as session,
        Session(model, options(swa="full", n_batch=128)) as fresh,
    ):
        for _ in range(8):
            timer = threading.Timer(rng.random() * 0.04, session.cancel)
            timer.start()
            text = edited(rng, [*TEXT[: rng.randrange(1, 1500)]], [TEXT[:400]])
            session.evaluate(text)
            timer.join()
            session.resume()
            assert list(session.tokens) == text[: session.used]
            session.evaluate(text)
            assert same(session, fresh)


def test_recompute_reads_its_window_again(model: Model) -> None:
    made = options(n_ctx=512, memory=MemoryOptions("recompute"))
    with Session(model, made) as session, Session(model, options(swa="full")) as fresh:
        session.evaluate(TEXT[:1500])
        assert session.used + session.dropped == 1500
        assert session.dropped > 900
        assert same(session, fresh)
        for wanted in (
            TEXT[:1500],
            [*TEXT[:1490], 7],
            TEXT[:1510],
            [*TEXT[:1300], 7],
            [*TEXT[:600], 7],
        ):
            prefill = session.evaluate(wanted)
            assert (
                prefill.reused + prefill.evaluated
                == session.used + session.dropped
                == len(wanted)
            )
            assert session.tokens == (*wanted[:4], *wanted[4 + session.dropped :])
            assert same(session, fresh)


@pytest.mark.parametrize(
    ("saved", "restored"), [("small", "small"), ("small", "full"), ("full", "small")]
)
def test_a_restored_state_goes_on_and_is_cut_as_a_fresh_one(
    model: Model, tmp_path: Path, saved: str, restored: str
) -> None:
    """llama.cpp writes of these layers the window alone, whatever there is."""
    path = tmp_path / "kv.bin"
    with (
        Session(model, options(swa=saved)) as first,
        Session(model, options(swa=restored)) as second,
    ):
        first.evaluate(TEXT[:1500])
        store.save(path, first, KEY)
        assert store.restore(path, second, KEY) == 1500
        assert second.evaluate(TEXT[:1520]).evaluated == 20
        assert same(second, first)
        second.evaluate([*TEXT[:1000], 7])
        assert same(second, first)


def test_a_state_of_which_all_layers_slide_is_kept(tmp_path: Path) -> None:
    """The tiny OLMo 2 has 2 layers, and of 4 the last one would see everything."""
    with (
        Model.open(windowed(tmp_path, "olmo2")) as model,
        Session(model, options()) as session,
    ):
        session.evaluate(TEXT[:500])
        store.save(tmp_path / "kv.bin", session, KEY)
        session.clear()
        assert store.restore(tmp_path / "kv.bin", session, KEY) == 500


def test_dynamic_ntk_reads_again_and_does_not_rotate(tmp_path: Path) -> None:
    keys = {"gemma2.attention.sliding_window": WINDOW, "gemma2.context_length": 256}
    path = write_random(tmp_path / "short.gguf", "gemma2", extra_keys=keys)
    with Model.open(path) as model:
        with pytest.raises(
            ModelError,
            match="layers with a sliding window, whose keys are not rotated: take replay",
        ):
            Session(model, options(n_ctx=1024, dynamic_ntk="rotate"))
        made = options(n_ctx=1024, dynamic_ntk="replay")
        with Session(model, made) as session, Session(model, made) as fresh:
            session.evaluate(TEXT[:200])
            session.evaluate(TEXT[:600])
            assert same(session, fresh)
            session.evaluate([*TEXT[:400], 7])
            assert session.used == 401


def test_a_window_that_llama_cpp_does_not_use_needs_no_copies(tmp_path: Path) -> None:
    """Of EXAONE 4 only the model of 64 layers has windows, whatever the file says."""
    with Model.open(windowed(tmp_path, "exaone4")) as model:
        assert model.n_swa == 0
        with (
            Session(model, options()) as session,
            Session(model, options(swa="full")) as fresh,
        ):
            session.evaluate(TEXT)
            assert not session.cache.checkpoints.most
            assert session.evaluate([*TEXT[:500], 7]).reused == 500
            assert same(session, fresh)


def test_the_default_is_what_takes_less_memory() -> None:
    assert not whole_windows("auto", 1024, 131072, 128)
    assert whole_windows("auto", 1024, 4096, 128)
    assert whole_windows("auto", 4096, 8192, 128)  # Gemma 2
    assert whole_windows("auto", 0, 131072, 128)
    assert whole_windows("small", 0, 131072, 128)
    assert not whole_windows("small", 4096, 8192, 128)
    assert whole_windows("full", 1024, 131072, 128)
    with pytest.raises(
        UsageError, match="swa is 'half', but must be one of auto, full, small"
    ):
        SessionOptions(swa="half")  # type: ignore[arg-type]


def test_the_copies_are_bounded_as_the_plan_says(model: Model) -> None:
    room = capacity.room(model, Choices("f32", 32, swa="small"))
    assert room is not None
    planned = room.planner.shares(room.planner.context(2048, Memories(None)))[
        0
    ].checkpoints
    with Session(model, options()) as session:
        for length in range(100, 2000, 100):
            session.evaluate(TEXT[:length])
        kept = session.cache.checkpoints._kept
        assert len(kept) == CHECKPOINTS
        assert (
            planned
            <= sum(checkpoint.data.nbytes for checkpoint in kept)
            < 1.05 * planned
        )
    with Session(model, options(swa="full")) as session:
        session.evaluate(TEXT[:1000])
        assert not session.cache.checkpoints._kept


def test_of_many_places_those_stay_that_are_dense_near_the_end() -> None:
    kept = Checkpoints(window=10, most=6)
    for count in range(100, 100_001, 100):
        kept.add(Checkpoint(count - 10, count, np.empty(0, np.uint8)))
    places = [checkpoint.count for checkpoint in kept._kept]
    assert len(places) == 6
    assert places[-1] == 100_000
    assert places[-2] >= 99_500
    assert places[0] <= 90_000
    assert kept.nearest(places[0] - 5) is None
    kept.cut(places[2] + 50)
    assert [checkpoint.count for checkpoint in kept._kept] == places[:3]
