"""Kept caches, and what contexts cannot take them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

import tiny_gguf

from ggext.runtime import store
from ggext.runtime.checked_state import StateKind, check_state, kind_of
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


@pytest.mark.parametrize("arch", ["qwen2vl", "qwen3vl", "glm4"])
def test_a_cache_whose_cells_have_four_positions(arch: str, tmp_path: Path) -> None:
    """M-RoPE: of a text each is the same; the restored cache answers as the one that was kept."""
    pytest.importorskip("transformers")
    extra = {"glm4.rope.dimension_sections": [2, 3, 3, 0]} if arch == "glm4" else {}
    path = tiny_gguf.write_random(tmp_path / "model.gguf", arch, extra_keys=extra)
    kept, text = tmp_path / "state", [(7 * i) % 300 + 3 for i in range(40)]
    options = SessionOptions(64, kv_type="f32")
    with Model.open(path) as model:
        assert kind_of(model).extended
        with Session(model, options) as session:
            session.evaluate(text[:30])
            store.save(kept, session, KEY)
            session.evaluate(text[30:])
            wanted = session.last_logits()
        with Session(model, options) as session:
            assert store.restore(kept, session, KEY) == 30
            session.evaluate(text[30:])
            assert abs(session.last_logits() - wanted).max() < 1e-4


@pytest.mark.parametrize("places", [0, 12])
def test_a_damaged_cache_with_four_positions(places: int, tmp_path: Path) -> None:
    """Read as one of cells with a position each, or cut short, it is none."""
    path = tiny_gguf.write_random(tmp_path / "model.gguf", "qwen2vl")
    with (
        Model.open(path) as model,
        Session(model, SessionOptions(64)) as session,
    ):
        session.evaluate(list(range(3, 33)))
        cells = session.snapshot()
    with pytest.raises(store.StateError, match="the saved state has"):
        check_state(cells, range(30))
    with pytest.raises(store.StateError, match="the saved state has"):
        check_state(
            cells[: len(cells) - 1 - places], range(30), StateKind(extended=True)
        )
