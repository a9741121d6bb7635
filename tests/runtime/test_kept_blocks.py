"""A kept cache under landmark: the blocks that left the context are kept with it, and a stranger's
are refused."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ggext.data import demo_language as language

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.chat.conversation import ChatOptions, Conversation  # noqa: E402
from ggext.runtime import store  # noqa: E402
from ggext.runtime.engine import (  # noqa: E402
    MemoryOptions,
    Model,
    Sampling,
    Session,
    SessionOptions,
    common_prefix_length,
)
from ggext.runtime.memory.landmark import Landmark  # noqa: E402

GREEDY = Sampling(temperature=0)
KEY = {"the model file": "a"}
TEXT = [1 + i * i % 250 for i in range(1500)]


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    """YaRN in keys, with a gain."""
    with Model.open(demo_gguf) as model:
        yield model


def options(n_ctx: int = 256, kv_type: str = "f16", **memory: Any) -> SessionOptions:
    asked = MemoryOptions("landmark", **{"retrieved": 64} | memory)
    return SessionOptions(n_ctx=n_ctx, kv_type=kv_type, memory=asked)


def landmark(session: Session) -> Landmark:
    assert isinstance(session.memory, Landmark)
    return session.memory


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
@pytest.mark.parametrize("spills", [False, True])
def test_a_restored_session_goes_on_as_the_one_that_was_never_closed(
    model: Model, tmp_path: Path, kv_type: str, spills: bool
) -> None:
    """Of the two answers both are longer than the 16 tokens after which other blocks may be
    fetched."""
    made = options(kv_type=kv_type, spill=tmp_path if spills else None)
    with Session(model, made) as first, Session(model, made) as second:
        first.evaluate(TEXT[:1300])
        size = store.save(tmp_path / "kv.bin", first, KEY)
        assert size == (tmp_path / "kv.bin").stat().st_size
        second.evaluate(TEXT[700:])  # what was there before is gone
        assert store.restore(tmp_path / "kv.bin", second, KEY) == first.used
        text = TEXT[:1310]
        for _ in range(2):
            assert (second.tokens, second.dropped) == (first.tokens, first.dropped)
            assert second.cache.positions == first.cache.positions
            assert landmark(second).account() == landmark(first).account()
            assert list(landmark(second).blocks_outside()) == list(
                landmark(first).blocks_outside()
            )
            counts = [session.evaluate(text) for session in (first, second)]
            assert counts[0].evaluated == counts[1].evaluated <= 11
            assert np.array_equal(first.last_logits(), second.last_logits())
            answers = [
                list(session.generate(GREEDY, 60)) for session in (first, second)
            ]
            assert answers[0] == answers[1]
            text = [*text, *answers[0], *TEXT[:10]]


def test_a_fact_that_had_left_is_found_by_the_restored_session(
    model: Model, tmp_path: Path
) -> None:
    """The texts are read and kept without a question; by chance one place of 32 is right."""
    rng, right = random.Random("needles"), 0
    for _ in range(6):
        told = language.facts(rng, language.RECALL_FACTS)
        document = language.document(rng, told, 900)
        early = min(told, key=lambda fact: document.index(fact.sentence()))
        question = language.question(early.key)
        asked = language.opening(language.RecallSample(document, question, ""))
        with Session(model, options(512, retrieved=128)) as session:
            conversation = Conversation(
                model, session, GREEDY, ChatOptions(max_tokens=12)
            )
            beginnings = [
                conversation.next_prompt(asked.removesuffix(question) + letter)
                for letter in "A1"
            ]
            session.evaluate(beginnings[0][: common_prefix_length(*beginnings)])
            assert session.dropped > 300
            store.save(tmp_path / "kv.bin", session, KEY)
        with Session(model, options(512, retrieved=128)) as session:
            store.restore(tmp_path / "kv.bin", session, KEY)
            conversation = Conversation(
                model, session, GREEDY, ChatOptions(max_tokens=12)
            )
            answer = "".join(conversation.ask(asked)).strip()
            assert conversation.outcome is not None
            assert conversation.outcome.prefill.evaluated < 20
        right += answer == language.answer(early.key, early.place)
    assert right >= 5


def test_only_a_policy_of_the_same_sizes_goes_on(model: Model, tmp_path: Path) -> None:
    with Session(model, options()) as session:
        session.evaluate(TEXT[:900])
        store.save(tmp_path / "kv.bin", session, KEY)
    for changed in ({"retrieved": 48}, {"sinks": 5}):
        with (
            Session(model, options(512, **changed)) as session,
            pytest.raises(
                store.StateError, match="what stays in a full context is another one"
            ),
        ):
            store.restore(tmp_path / "kv.bin", session, KEY)
    with Session(model, options(400)) as session:  # of another length, the same blocks
        store.restore(tmp_path / "kv.bin", session, KEY)
        assert session.used + session.dropped == 900
        assert session.evaluate([*TEXT[:900], 7]).evaluated == 1


def test_a_text_of_which_nothing_left_is_kept_as_ever(
    model: Model, tmp_path: Path
) -> None:
    with Session(model, options()) as session:
        session.evaluate(TEXT[:100])
        store.save(tmp_path / "kv.bin", session, KEY)
    with Session(model, options()) as session:
        assert store.restore(tmp_path / "kv.bin", session, KEY) == 100
        session.evaluate(TEXT[:700])
        assert session.used + session.dropped == 700


Change = Callable[[dict[str, Any]], None]


def rewritten(whole: bytes, change: Change) -> bytes:
    """With another JSON object, and the checksum that a stranger would write."""
    length = struct.unpack_from("<I", whole, 12)[0]
    document = json.loads(whole[16 : 16 + length])
    change(document)
    head = json.dumps(document).encode()
    return checked(
        whole[:12] + struct.pack("<I", len(head)) + head + whole[16 + length :]
    )


def checked(data: bytes) -> bytes:
    return data[:8] + struct.pack("<I", zlib.crc32(data[12:])) + data[12:]


@pytest.fixture
def kept(model: Model, tmp_path: Path) -> Iterator[tuple[Session, Path]]:
    """A session, and its state with blocks."""
    with Session(model, options()) as session:
        session.evaluate(TEXT[:600])
        store.save(tmp_path / "kv.bin", session, KEY)
        yield session, tmp_path / "kv.bin"


@pytest.mark.parametrize(
    "account",
    [
        {"passages": []},
        {"passages": [9]},
        {"passages": [9, "4"]},
        {"passages": [9, 0]},
        {"passages": [9, 65]},
        {"passages": [9, -3]},
        {"passages": [4, 64]},
        {"passages": [10**9, 64]},
        {"passages": {"index": 9}},
    ],
)
def test_a_stranger_s_account_of_the_blocks_is_refused(
    kept: tuple[Session, Path], account: Any
) -> None:
    session, path = kept
    whole = path.read_bytes()

    def change(document: dict[str, Any]) -> None:
        document["account"] = document["account"] | account if account else account

    path.write_bytes(rewritten(whole, change))
    with pytest.raises(store.StateError):
        store.restore(path, session, KEY)
    path.write_bytes(whole)
    store.restore(path, session, KEY)
    assert landmark(session).retrieval.passages is not None


def test_a_text_outside_that_is_none_is_refused(kept: tuple[Session, Path]) -> None:
    session, path = kept
    whole = path.read_bytes()
    size = len(next(landmark(session).blocks_outside()))
    start, keys = len(whole) - size, len(whole) - size + 4 * session.dropped
    other_token = bytearray(whole)
    other_token[start] ^= 1
    no_token = bytearray(whole)
    no_token[start + 3] ^= 0x7F
    for data in (
        whole[:-1],
        whole + b"\0",
        whole + whole[-size:],
        whole[:start],
        bytes(other_token),
        bytes(no_token),
    ):
        path.write_bytes(checked(data))
        with pytest.raises(store.StateError):
            store.restore(path, session, KEY)
        assert session.used in (0, len(session.tokens))
    for place in range(keys, len(whole), 1001):
        data = bytearray(whole)  # keys may be anything
        data[place] ^= 0xFF
        path.write_bytes(checked(bytes(data)))
        store.restore(path, session, KEY)
        session.evaluate([*TEXT[:600], 5, 6, 7])
    path.write_bytes(whole)
    store.restore(path, session, KEY)
    assert list(session.generate(GREEDY, 40))
