"""Saved states as a stranger writes them, with a right checksum, for each kind of cache and memory.
A state is refused by a StateError, or it is used; the session goes on in both cases."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.errors import GgextError  # noqa: E402
from ggext.runtime import store  # noqa: E402
from ggext.runtime.engine import (  # noqa: E402
    MemoryOptions,
    Model,
    Session,
    SessionOptions,
)

KEY = {"the model file": "a"}
VALUES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000, 0x00010000)
HEAD = 700  # bytes of the document before the cells, about
CHANGES = 50
#: What is tested: architecture, memory, tokens that are read.
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "landmark": ("llama", {"when_full": "landmark", "retrieved": 32}, 400),
    "compress": ("llama", {"when_full": "compress", "keep": 0.5}, 400),
    "compress with the rest outside": (
        "llama",
        {"when_full": "compress", "evicted": "kept"},
        400,
    ),
    "landmark that forgot": (
        "llama",
        {"when_full": "landmark", "retrieved": 32, "evicted_memory": 9000},
        900,
    ),
    "stream": ("llama", {"when_full": "stream"}, 400),
    "sections": ("qwen2vl", {}, 60),
    "windows": ("gemma3", {}, 60),
    **{
        f"recurrent {arch}": (arch, {}, 60)
        for arch in ("falcon-h1", "granitehybrid", "lfm2", "nemotron_h", "qwen35")
    },
}


@pytest.fixture
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    arch, memory, _ = KINDS[request.param]
    path = tiny_gguf.write_random(tmp_path / "model.gguf", arch)
    options = SessionOptions(128, threads=1, memory=MemoryOptions(**memory))
    with Model.open(path) as model, Session(model, options) as session:
        yield session


def changed(whole: bytes, rng: random.Random) -> bytes:
    """Some four bytes are another number, or the end is cut or longer."""
    data = bytearray(whole)
    kind = rng.random()
    if kind < 0.1:
        del data[rng.randrange(12, len(data)) :]
    elif kind < 0.15:
        data += rng.randbytes(rng.randrange(1, 5000))
    else:
        last = len(data) - 4
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(12, min(HEAD, last) if rng.random() < 0.5 else last)
            struct.pack_into("<I", data, place, rng.choice(VALUES))
    struct.pack_into("<I", data, 8, zlib.crc32(data[12:]))
    return bytes(data)


@pytest.mark.parametrize(
    ("session", "name"), [(k, k) for k in KINDS], indirect=["session"]
)
def test_a_strangers_state_is_refused_or_used(
    session: Session, name: str, tmp_path: Path
) -> None:
    tokens = KINDS[name][2]
    text = [3 + i * i % (session.model.n_vocab - 5) for i in range(tokens)]
    session.evaluate(text)
    path = tmp_path / "state"
    store.save(path, session, KEY)
    whole = path.read_bytes()
    rng = random.Random(name)
    refused = 0
    for _ in range(CHANGES):
        path.write_bytes(changed(whole, rng))
        session.clear()
        try:
            store.restore(path, session, KEY)
        except store.StateError:
            refused += 1
            assert session.used == 0
        with contextlib.suppress(GgextError):
            session.evaluate([*session.tokens, 5, 6])
    assert refused > CHANGES // 2
    path.write_bytes(whole)
    assert store.restore(path, session, KEY) > 0


@pytest.mark.parametrize("again", [[7, 6, 5, 4], [5, 9, 9]])
@pytest.mark.parametrize("arch", ["llama", "falcon-h1", "lfm2", "qwen35"])
def test_numbers_that_are_none_spoil_no_later_text(
    arch: str, again: list[int], tmp_path: Path
) -> None:
    """llama.cpp multiplies the values of cells that nothing attends to by 0, and a NaN stays one."""
    values = tiny_gguf.base_of(arch)[1]["token_embd.weight"].copy()
    values[8] = np.nan
    path = tiny_gguf.write_random(
        tmp_path / "model.gguf", arch, extra_tensors={"token_embd.weight": values}
    )
    with Model.open(path) as model, Session(model, SessionOptions(64)) as session:
        session.evaluate(again)
        expected = session.last_logits()
        session.evaluate([5, *[8] * 20])
        assert np.isnan(session.last_logits()).all()
        session.evaluate(again)
        np.testing.assert_array_equal(session.last_logits(), expected)
