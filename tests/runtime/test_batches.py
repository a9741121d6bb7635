"""How many tokens are read at once: fewer after many, the same for the same text, whoever reads it
in which steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggext.errors import ModelError
from ggext.footprint import defaults, planner
from ggext.footprint.architecture import Architecture, Layer
from ggext.footprint.cache import Context

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime.batches import Batches, attention  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions  # noqa: E402

LLAMA_8B = (32, 128)  # heads and their size
LLAMA_1B = (32, 64)
PLACES = (0, 8192, 16384, 32768, 131072)

rules = st.builds(
    Batches,
    st.integers(1, 600),
    st.integers(1, 64),
    st.frozensets(
        st.tuples(st.integers(256, 2**18), st.integers(0, 2**17)), max_size=3
    ),
)
places = st.integers(0, 2**18)


def rule(shape: tuple[int, int], threads: int, most: int = 64) -> Batches:
    heads, size = shape
    return Batches(most, threads, frozenset({(131072, heads * size)}))


@pytest.mark.parametrize(
    ("shape", "threads", "most", "expected"),
    [
        (LLAMA_8B, 2, 64, [64, 64, 64, 48, 16]),
        (LLAMA_8B, 1, 64, [64, 64, 48, 24, 16]),
        (LLAMA_1B, 2, 64, [64, 64, 64, 64, 24]),
        (LLAMA_8B, 8, 128, [128, 128, 128, 128, 48]),
        (LLAMA_8B, 2, 256, [256, 216, 104, 48, 16]),
        (LLAMA_8B, 64, 128, [128, 128, 128, 128, 128]),
    ],
)
def test_behind_many_tokens_fewer_are_read_at_once(
    shape: tuple[int, int], threads: int, most: int, expected: list[int]
) -> None:
    assert [rule(shape, threads, most).at(place) for place in PLACES] == expected


@given(rules, places, places)
def test_the_number_never_grows_with_the_text(
    batches: Batches, one: int, other: int
) -> None:
    few, many = batches.at(max(one, other)), batches.at(min(one, other))
    assert min(batches.most, 16) <= few <= many <= batches.most
    assert few == batches.most or few % 8 == 0


@given(rules, places)
def test_the_longest_operation_is_short_unless_the_batch_is_the_least(
    batches: Batches, place: int
) -> None:
    count = batches.at(place)
    work = max(
        (2 * each * min(place + count, cells) for cells, each in batches.attention),
        default=0,
    )
    assert (
        count <= 16 or count * work <= defaults.SOON * defaults.SPEED * batches.threads
    )


@settings(deadline=None)
@given(
    rules,
    st.integers(0, 2**17),
    st.integers(1, 3000),
    st.integers(0, 3000),
    st.integers(1, 600),
)
def test_what_is_read_ahead_ends_where_a_batch_would(
    batches: Batches, start: int, count: int, ahead: int, most: int
) -> None:
    tokens = list(range(count))
    at_once = list(batches.split(tokens, start, most))
    assert list(chain.from_iterable(at_once)) == tokens
    assert all(len(batch) <= min(most, batches.most) for batch in at_once)
    *_, end = start, *batches.ends(start, start + min(ahead, count), most)
    first, rest = tokens[: end - start], tokens[end - start :]
    assert [
        *batches.split(first, start, most),
        *batches.split(rest, end, most),
    ] == at_once


def test_windows_count_as_the_cells_that_they_have() -> None:
    def layers(*slides: bool) -> Architecture:
        made = tuple(Layer(32, 8, 128, 128, slides=each) for each in slides)
        return Architecture(
            name="x",
            layers=made,
            width=4096,
            vocabulary=1000,
            window=1024,
            latent=None,
            experts_used=0,
            context=131072,
            streams=0,
            keys={},
            tensors={},
        )

    def at_32768(arch: Architecture, *, whole: bool) -> int:
        return Batches(
            64, 2, attention(arch, Context(131072, 64, whole_windows=whole))
        ).at(32768)

    assert at_32768(layers(True, True), whole=False) == 64
    assert at_32768(layers(True, True), whole=True) == 48
    assert at_32768(layers(True, False), whole=False) == 48


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    with Model.open(demo_gguf, gpu_layers=0) as model:
        yield model


@pytest.fixture
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So slow that some hundred tokens of the embedded model are many."""
    monkeypatch.setattr(defaults, "SPEED", 4e7 / 3)


def text(count: int) -> list[int]:
    return [3 + i * i % 250 for i in range(count)]


def sizes_of(session: Session) -> list[int]:
    """Fills with the sizes of what is appended."""
    append, sizes = session.cache.append, []

    def watched(tokens: Sequence[int], every_logit: bool = False) -> bool:
        sizes.append(len(tokens))
        return append(tokens, every_logit)

    session.cache.append = watched  # type: ignore[method-assign]
    return sizes


def options(**changed: Any) -> SessionOptions:
    return SessionOptions(**{"n_ctx": 1024, "threads": 1, "kv_type": "f32"} | changed)


@pytest.mark.usefixtures("_slow_machine")
def test_a_long_text_is_read_in_ever_smaller_batches_and_gives_the_same_logits(
    model: Model,
) -> None:
    with (
        Session(model, options()) as session,
        Session(model, options(n_batch=64)) as fixed,
    ):
        sizes, constant = sizes_of(session), sizes_of(fixed)
        session.evaluate(text(800))
        fixed.evaluate(text(800))
        assert sizes[0] == 64
        assert sizes[-2] == 16
        assert sorted(sizes[:-1], reverse=True) == sizes[:-1]
        assert set(constant[:-1]) == {64}
        np.testing.assert_allclose(
            session.last_logits(), fixed.last_logits(), atol=2e-3
        )
        np.testing.assert_allclose(
            session.logits(text(800)), fixed.logits(text(800)), atol=2e-3
        )


@pytest.mark.usefixtures("_slow_machine")
@pytest.mark.parametrize("ahead", [150, 333, 700])
def test_what_is_read_ahead_in_smaller_batches_changes_no_bit(
    model: Model, ahead: int
) -> None:
    with Session(model, options()) as session:
        session.evaluate(text(50))
        sizes = sizes_of(session)
        session.evaluate(text(800))
        expected, at_once = session.last_logits(), list(sizes)
    with Session(model, options()) as session:
        session.evaluate(text(50))
        sizes = sizes_of(session)
        assert 0 < session.read_ahead(text(ahead)).evaluated <= ahead - 50
        session.evaluate(text(800))
        assert sizes == at_once
        assert np.array_equal(session.last_logits(), expected)


@pytest.mark.usefixtures("_slow_machine")
def test_what_slides_is_read_again_in_the_batches_of_its_places(model: Model) -> None:
    with Session(
        model, options(n_ctx=512, memory=MemoryOptions("recompute"))
    ) as session:
        sizes = sizes_of(session)
        session.evaluate(text(512))
        first = list(sizes)
        sizes.clear()
        session.evaluate(text(520))
        again = sizes[:-1]
        assert again[:-1] == first[: len(again) - 1]
        assert again[0] > again[-2]


@pytest.mark.usefixtures("_slow_machine")
@pytest.mark.parametrize(
    "changed",
    [{"n_batch": 48}, {"n_batch": 48, "kv_type": "q8_0"}, {"kv_type": "q8_0"}],
)
def test_who_chose_the_batch_gets_it_everywhere_and_flash_attention_64_or_more(
    model: Model, changed: dict[str, Any]
) -> None:
    with Session(model, options(**changed)) as session:
        assert {session.cache.batches.at(place) for place in (0, 500, 1000)} == {
            changed.get("n_batch", 64)
        }


def test_as_many_are_read_at_once_as_take_little_time_and_memory(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads wait for each other after each operation of a batch, however large it is."""
    monkeypatch.setattr(planner, "_ROWS", 4 * 256 * (model.n_vocab + 4 * 1024))
    for n_ctx, most in ((1024, 256), (1280, 128), (2048, 128)):
        with Session(model, options(n_ctx=n_ctx)) as session:
            assert session.n_batch == most, n_ctx
    with Session(model, options(n_ctx=2048, flash_attention=True)) as session:
        assert session.n_batch == 256  # which keeps no scores
    monkeypatch.setattr(defaults, "SPEED", 2.1 * 128 * 128 * 352 / 0.3)
    with Session(model, options()) as session:
        assert session.n_batch == 128
    monkeypatch.setattr(defaults, "SPEED", 1.9 * 128 * 128 * 352 / 0.3)
    with Session(model, options()) as session:
        assert session.n_batch == 64


def test_more_tokens_than_a_batch_are_an_error_and_change_nothing(model: Model) -> None:
    with Session(model, options(n_batch=32)) as session:
        session.evaluate(text(10))
        with pytest.raises(
            ModelError,
            match="33 tokens at once are too many for a context of n_batch 32",
        ):
            session.cache.append(text(33))
        assert session.tokens == tuple(text(10))
        assert session.evaluate(text(100)).reused == 10


def test_a_batch_of_one_token_does_not_end_the_process_where_cells_are_moved(
    model: Model,
) -> None:
    with Session(
        model, options(n_ctx=64, n_batch=1, memory=MemoryOptions("stream"))
    ) as session:
        session.evaluate(text(70))
        assert session.dropped > 0
