"""Kept caches, and what contexts cannot take them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from ggext.runtime import store
from ggext.runtime.engine import Model, Session, SessionOptions

KEY = {"the model file": "a"}


@pytest.mark.parametrize("flash", [False, True])
def test_a_cache_of_the_other_kind_of_attention_is_named(
    demo_gguf: Path, tmp_path: Path, flash: bool
) -> None:
    kept = tmp_path / "state"
    with Model.open(demo_gguf) as model:
        with Session(model, SessionOptions(64, flash_attention=flash)) as session:
            session.evaluate(list(range(1, 31)))
            store.save(kept, session, KEY)
        with Session(model, SessionOptions(64, flash_attention=not flash)) as session:
            with pytest.raises(
                store.StateError, match="the use of flash attention is another one"
            ):
                store.restore(kept, session, KEY)
            assert session.tokens == ()
        with Session(model, SessionOptions(64, flash_attention=flash)) as session:
            assert store.restore(kept, session, KEY) == 30
