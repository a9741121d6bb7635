"""Caches with a state in place of tokens, on the disk and in host memory: what it was comes back."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kept_chats import KEY, SAID, repair
from recurrent_models import recurrent_model

from ggext.chat.session import Keeper, named
from ggext.runtime import store
from ggext.runtime.checked_state import StateError, check_state, kind_of
from ggext.runtime.engine import Model, Sampling, Session, SessionOptions
from ggext.runtime.prefixes import Prefixes
from ggext.runtime.state_copies import read_copies

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

CONTEXT = 256
IDS = [3 + 7 * i % 250 for i in range(CONTEXT)]
ARCHITECTURES = [
    "falcon-h1",
    "granitehybrid",
    "lfm2",
    "lfm2moe",
    "nemotron_h",
    "qwen35",
    "qwen35moe",
    "qwen3next",
]
Opened = Callable[..., Session]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp(request.param)
    with recurrent_model(folder, request.param, CONTEXT) as model:
        yield model


@pytest.fixture
def opened(model: Model) -> Iterator[Opened]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def open_session(
            prefixes: Prefixes | None = None, **options: object
        ) -> Session:
            whole = {"n_ctx": CONTEXT, "n_batch": 32, "threads": 1} | options
            return stack.enter_context(
                Session(model, SessionOptions(**whole), prefixes)  # type: ignore[arg-type]
            )

        yield open_session


@pytest.mark.parametrize(
    "options", [{}, {"kv_type": "f32", "flash_attention": True}], ids=["f16", "f32"]
)
def test_a_restored_state_goes_on_bit_for_bit(
    opened: Opened, tmp_path: Path, options: dict[str, object]
) -> None:
    first, second = opened(**options), opened(**options)
    first.evaluate(IDS[:90])
    said = [*first.generate(Sampling(temperature=0), 20)]
    store.save(tmp_path / "kv.bin", first, KEY)
    assert store.restore(tmp_path / "kv.bin", second, KEY) == first.used
    assert second.tokens == first.tokens
    assert np.array_equal(first.last_logits(), second.last_logits())
    text = [*first.tokens]
    assert text[90:] == said[: len(text) - 90]
    for more in ([7], IDS[10:60]):
        text += more
        counts = [session.evaluate(text).reused for session in (first, second)]
        assert counts == [len(text) - len(more)] * 2
        assert np.array_equal(first.last_logits(), second.last_logits())


def test_it_is_the_state_of_the_text(opened: Opened, tmp_path: Path) -> None:
    first, second, fresh = opened(), opened(), opened()
    first.evaluate(IDS[:100])
    store.save(tmp_path / "kv.bin", first, KEY)
    store.restore(tmp_path / "kv.bin", second, KEY)
    second.evaluate(IDS[:120])
    fresh.evaluate(IDS[:120])
    wanted = fresh.last_logits()
    assert np.abs(second.last_logits() - wanted).max() <= 1e-3 * np.ptp(wanted)


def test_one_token_is_kept_too(opened: Opened, tmp_path: Path) -> None:
    first, second = opened(), opened()
    first.evaluate(IDS[:1])
    store.save(tmp_path / "kv.bin", first, KEY)
    assert store.restore(tmp_path / "kv.bin", second, KEY) == 1
    assert np.array_equal(first.last_logits(), second.last_logits())


def test_keeping_changes_nothing_of_what_is_kept(
    opened: Opened, tmp_path: Path
) -> None:
    """A second time, without a word in between, nothing is read but the last token."""
    session = opened()
    session.evaluate(IDS[:100])
    store.save(tmp_path / "one.bin", session, KEY)
    store.save(tmp_path / "two.bin", session, KEY)
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes()


def test_a_text_comes_back_from_host_memory_bit_for_bit(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without its beginning being read again: one token is."""
    session, other = opened(Prefixes()), opened()
    for each in (session, other):
        each.logits(IDS[:150])  # which makes no copies of the state
        each.evaluate(IDS[:150])
    session.evaluate([9] * 50)
    read: list[int] = []
    append = session.cache.append
    monkeypatch.setattr(
        session.cache,
        "append",
        lambda tokens, *rest: (read.append(len(tokens)), append(tokens, *rest))[1],
    )
    assert session.evaluate(IDS[:180]).reused == 150
    assert sum(read) == 30
    other.snapshot()  # the last token by itself, as before a copy
    other.evaluate(IDS[:180])
    assert np.array_equal(session.last_logits(), other.last_logits())


def test_a_restored_text_is_cut_back_where_its_last_prompt_ended(
    opened: Opened, tmp_path: Path
) -> None:
    """As a template does that leaves the reasoning of earlier answers out."""
    first, second = opened(), opened()
    first.evaluate(IDS[:60])
    first.evaluate(IDS[:100])
    [*first.generate(Sampling(temperature=0), 30)]
    store.save(tmp_path / "kv.bin", first, KEY)
    store.restore(tmp_path / "kv.bin", second, KEY)
    text = [*IDS[:100], *IDS[5:25]]
    assert second.evaluate(text).reused == first.evaluate(text).reused == 100
    assert np.array_equal(first.last_logits(), second.last_logits())


def test_a_kept_chat_is_restored(opened: Opened) -> None:
    folder = named("states")
    with Keeper(folder, "m.gguf", opened()) as keeper:
        assert keeper.session is not None
        keeper.session.evaluate(IDS[:200])
        keeper.record(SAID)
        keeper.save_state()
    with Keeper(folder, "m.gguf", opened()) as keeper:
        assert keeper.session is not None
        assert keeper.restore()[1].startswith("200 tokens of KV cache restored in ")
        assert keeper.session.evaluate(IDS[:203]).evaluated == 3


@pytest.mark.parametrize(
    "copies",
    [
        0,
        "x",
        [5],
        [[5]],
        [[5, 9, 0.5]],
        [[5, 40, 0], [5, 40, 0]],
        [[40, 40, 0]],
        [[5, 1 << 62, 0]],
        [[5, 7, 0]],
        [[0, 40, 0]],
        [[1, 40, 0]] * 9,
    ],
)
def test_a_stranger_s_copies_are_refused(copies: object) -> None:
    with pytest.raises(StateError, match="the saved state"):
        read_copies(copies, 40, lambda _, length: bytearray(min(length, 99)), 0)


def test_a_copy_of_another_place_is_refused(opened: Opened, tmp_path: Path) -> None:
    session, other, path = opened(), opened(), tmp_path / "kv.bin"
    session.evaluate(IDS[:60])
    session.evaluate(IDS[:100])
    store.save(path, session, KEY)
    whole = path.read_bytes()
    length = struct.unpack_from("<I", whole, 12)[0]
    document = json.loads(whole[16 : 16 + length])
    place = document["copies"][-1][0]
    document["copies"][-1][0] = place - 1
    head = json.dumps(document).encode()
    assert len(head) == length
    data = bytearray(whole[:16] + head + whole[16 + length :])
    repair(data)
    path.write_bytes(data)
    with pytest.raises(StateError, match=f"after position {place - 1}, not"):
        store.restore(path, other, KEY)
    assert other.used == 0


def test_a_damaged_state_is_refused(
    model: Model, opened: Opened, tmp_path: Path
) -> None:
    """Cut short, of another place of the text, or with any number of it changed."""
    session, other, path = opened(), opened(), tmp_path / "kv.bin"
    session.evaluate(IDS[:10])
    cells = session.snapshot()
    kind = kind_of(model)
    check_state(cells, range(9), kind)
    for count in (8, 10):
        with pytest.raises(StateError, match="the saved state"):
            check_state(cells, range(count), kind)
    for length in range(8, len(cells), 97):
        with pytest.raises(StateError, match="the saved state"):
            check_state(cells[:length], range(9), kind)
    store.save(path, session, KEY)
    whole = path.read_bytes()
    numbers = _states(whole)
    for at in numbers:
        for value in (0xFFFFFFFF, 0x7FFFFFFF, 2):
            data = bytearray(whole)
            if data[at : at + 4] == struct.pack("<I", value):
                continue
            struct.pack_into("<I", data, at, value)
            repair(data)
            path.write_bytes(data)
            with pytest.raises(StateError):
                store.restore(path, other, KEY)
            assert other.used == 0
    path.write_bytes(whole)
    assert store.restore(path, other, KEY) == 10


def _states(whole: bytes) -> list[int]:
    """Where in a file the states' head begins: 6 numbers, 4 bytes each."""
    document = json.loads(whole[16 : 16 + struct.unpack_from("<I", whole, 12)[0]])
    copies = sum(size for _, size, _ in document["copies"])
    start = len(whole) - copies - document["state"]
    head = struct.pack("<IiI", 1, 8, 0)
    at = whole.index(head, start)
    assert struct.unpack_from("<I", whole, at + 12) == (0,)
    return [*range(at, at + 24, 4)]
