"""Files of a KV cache that are damaged, of another model, or a stranger's."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from kept_chats import KEY, TEXT, Open, repair, streaming

from ggext.errors import ModelError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "account", [None, {}, [], {"selected": -1}, {"selected": 500}, {"selected": "x"}]
)
def test_a_stranger_s_account_of_what_compress_selected_is_refused(
    open_session: Open, account: Any
) -> None:
    session = open_session(**streaming("compress"))
    session.evaluate(TEXT[:900])
    memory = session.memory
    assert memory.layout(session.used, memory.gone, memory.account())
    with pytest.raises(
        ModelError, match="what it tells of the tokens that left the context"
    ):
        memory.layout(session.used, memory.gone, account)


@pytest.mark.parametrize(
    "change",
    [
        {"start": 5},
        {"start": -4},
        {"count": 0},
        {"count": 2**40},
        {"count": None},
        {"digest": "00"},
        {"digest": ""},
        {"digest": 5},
        {"rest": []},
        {"rest": [-1]},
        {"rest": [2**31]},
        {"rest": "x"},
        {"rest": [None]},
    ],
)
def test_a_stranger_s_account_of_what_left_is_refused(
    tmp_path: Path, open_session: Open, change: dict[str, Any]
) -> None:
    from ggext.runtime import store

    session, path = open_session(**streaming()), tmp_path / "kv.bin"
    session.evaluate(TEXT[:900])
    store.save(path, session, KEY)
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[16 : 16 + length])
    if isinstance(change.get("rest"), list) and change["rest"]:
        change = {"rest": change["rest"] * len(document["gone"]["rest"])}
    document["gone"] |= change
    head = json.dumps(document).encode()
    damaged = bytearray(
        data[:12] + struct.pack("<I", len(head)) + head + data[16 + length :]
    )
    repair(damaged)
    path.write_bytes(damaged)
    with pytest.raises(store.StateError, match="is damaged"):
        store.restore(path, session, KEY)


def test_a_state_of_another_length_s_table_is_not_used(tmp_path: Path) -> None:
    """Dynamic NTK: the base grew with the text, and stays when the text is cut."""
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling
    from ggext.runtime import store
    from ggext.runtime.engine import Model, Session, SessionOptions

    convert(ConvertOptions(DEMO_MODEL, tmp_path / "m.gguf", RopeScaling("none")))
    path = tmp_path / "kv.bin"
    with Model.open(tmp_path / "m.gguf") as model:
        options = SessionOptions(n_ctx=1024, dynamic_ntk="rotate")
        with Session(model, options) as first, Session(model, options) as second:
            first.evaluate(TEXT[:600])
            store.save(path, first, KEY)
            assert store.restore(path, second, KEY) == 600
            assert second.cache.regime == first.cache.regime
            first.evaluate(TEXT[:100])
            store.save(path, first, KEY)
            with pytest.raises(
                store.StateError,
                match="the RoPE table is another one than when the state was saved",
            ):
                store.restore(path, second, KEY)
            assert second.used == 600  # as it was


def test_a_state_of_another_kind_is_named(tmp_path: Path, open_session: Open) -> None:
    from ggext.runtime import store

    session = open_session()
    session.evaluate(TEXT[:100])
    store.save(tmp_path / "kv.bin", session, KEY)
    with pytest.raises(
        store.StateError,
        match="the version is another one than when the state was saved",
    ):
        store.restore(tmp_path / "kv.bin", session, KEY | {"the version": "c"})
    with pytest.raises(
        store.StateError, match="100 tokens, more than the context of 64"
    ):
        store.restore(tmp_path / "kv.bin", open_session(n_ctx=64), KEY)
    for other, words in (
        # llama.cpp's own refusals are ours too
        ({"kv_type": "f32"}, "cannot be put back"),
        ({"flash_attention": True}, "the use of flash attention is another one"),
    ):
        apart = open_session(**other)
        with pytest.raises(store.StateError, match=words):
            store.restore(tmp_path / "kv.bin", apart, KEY)
        assert apart.used == 0
        assert not apart.evaluate(TEXT[:3]).cancelled


def test_a_cache_that_gives_other_logits_is_not_used(
    tmp_path: Path, open_session: Open
) -> None:
    from ggext.runtime import store

    session = open_session()
    session.evaluate(TEXT[:100])
    path = tmp_path / "kv.bin"
    store.save(path, session, KEY)
    data = bytearray(path.read_bytes())
    data[-12_000:-2_000] = bytes(10_000)  # values of the last layer
    repair(data)
    path.write_bytes(data)
    with pytest.raises(store.StateError, match="other logits than the saved one"):
        store.restore(path, session, KEY)
    assert session.used == 0


def test_an_empty_cache_is_not_saved(tmp_path: Path, open_session: Open) -> None:
    from ggext.runtime import store

    with pytest.raises(ModelError, match="no token to evaluate"):
        store.save(tmp_path / "kv.bin", open_session(), KEY)
    assert not (tmp_path / "kv.bin").exists()


def test_damage_is_found_at_every_place(tmp_path: Path, open_session: Open) -> None:
    from ggext.runtime import store

    session, path = open_session(), tmp_path / "kv.bin"
    session.evaluate(TEXT[:10])
    store.save(path, session, KEY)
    whole = path.read_bytes()
    places = [*range(400), *range(400, len(whole), 997)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 0x55
        path.write_bytes(data)
        with pytest.raises(store.StateError):
            store.restore(path, session, KEY)
    for length in (0, 1, 15, 16, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(store.StateError):
            store.restore(path, session, KEY)
    path.write_bytes(whole)
    assert store.restore(path, session, KEY) == 10


def test_a_strangers_file_with_a_right_checksum_harms_nobody(
    tmp_path: Path, open_session: Open
) -> None:
    """Every 4 bytes of the head, the tokens and the first cells set to what overflows, in turn."""
    from ggext.runtime import store

    session, path = open_session(), tmp_path / "kv.bin"
    session.evaluate(TEXT[:10])
    store.save(path, session, KEY)
    whole = path.read_bytes()
    state = whole.index(whole[-session.snapshot().nbytes :])
    refused = 0
    places = [
        *range(12, 16),
        *range(16, 320, 3),
        *range(state, state + 8 + 8 + 120 + 8 + 12),
    ]
    for place in places:
        for value in (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000):
            data = bytearray(whole)
            struct.pack_into("<I", data, place, value)
            repair(data)
            path.write_bytes(data)
            try:
                store.restore(path, session, KEY)
            except store.StateError:
                refused += 1
    assert refused > 2 * len(
        places
    )  # the sequence's number and parts of the JSON may be anything
    path.write_bytes(whole)
    assert store.restore(path, session, KEY) == 10


def test_the_fingerprint_sees_the_header_the_size_and_the_weights(
    tmp_path: Path, model_path: Path
) -> None:
    from ggext.gguf.open import read_gguf
    from ggext.runtime.store import fingerprint

    def of(data: bytes) -> str:
        (tmp_path / "m.gguf").write_bytes(data)
        return fingerprint(read_gguf(tmp_path / "m.gguf"))

    whole = model_path.read_bytes()
    offset = read_gguf(model_path).data_offset
    weights = bytearray(whole)
    weights[offset] ^= 1
    assert of(whole) == fingerprint(read_gguf(model_path))
    header = whole.replace(b"context_length", b"context_lengtH", 1)
    assert len({of(whole), of(bytes(weights)), of(whole + bytes(32)), of(header)}) == 4
