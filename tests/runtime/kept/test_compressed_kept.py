"""A cache of compressed tokens is not kept on the disk; the chat's text is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kept_chats import KEY, SAID
from tiny_gguf import write_random

from ggext.chat.session import Keeper, named
from ggext.runtime import store
from ggext.runtime.checked_state import StateError
from ggext.runtime.engine import Model, Session, SessionOptions

pytest.importorskip("llama_cpp")

CONTEXT = 256
IDS = [3 + 7 * i % 250 for i in range(200)]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    path = write_random(
        tmp_path / "model.gguf",
        "deepseek4",
        extra_keys={"deepseek4.context_length": CONTEXT},
    )
    options = SessionOptions(n_ctx=CONTEXT, n_batch=32, threads=1)
    with Model.open(path) as model, Session(model, options) as session:
        session.evaluate(IDS)
        yield session


def test_the_state_is_refused_and_the_session_goes_on(
    session: Session, tmp_path: Path
) -> None:
    with pytest.raises(StateError, match="of a chat only the text is kept") as caught:
        store.save(tmp_path / "kv.bin", session, KEY)
    said = str(caught.value)
    assert said.startswith("the cache of deepseek4 has compressed tokens, a form that")
    # nothing of how the bytes were misread
    assert not re.search(r"\d{2}|streams|\n", said)
    assert not (tmp_path / "kv.bin").exists()
    assert session.evaluate([*IDS, 5, 6]).reused == len(IDS)


def test_a_chat_keeps_its_text(session: Session) -> None:
    folder = named("compressed")
    with Keeper(folder, "m.gguf", session) as keeper:
        keeper.record(SAID)
        with pytest.raises(StateError, match="of a chat only the text is kept"):
            keeper.save_state()
    with Keeper(folder, "m.gguf", session) as keeper:
        assert [*keeper.turns] == SAID
        restored, notice = keeper.restore()
    assert not restored
    assert notice.endswith("the next question reads the chat again")
