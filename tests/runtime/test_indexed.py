"""Models whose tokens attend to chosen ones: their second cache, of the indexer's keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_random

from ggext.errors import ModelError
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.proof.shift import measure_shifts
from ggext.runtime import store
from ggext.runtime.engine import Model, Session, SessionOptions
from ggext.runtime.memory import MemoryOptions

pytest.importorskip("llama_cpp")

IDS = [3 + 7 * i % 250 for i in range(256)]
CLOSE = 1e-5  # logits of another order of the same float32 sums


@pytest.fixture(scope="module", params=["deepseek32", "glm-dsa", "minimax-m3"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    arch = request.param
    path = tmp_path_factory.mktemp(arch) / "model.gguf"
    write_random(path, arch, extra_keys={f"{arch}.context_length": 256})
    with Model.open(path) as model:
        yield model


def opened(model: Model, when_full: str = "stop") -> Session:
    memory = MemoryOptions(when_full=when_full, sinks=4, retrieved=1)  # type: ignore[arg-type]
    flash = model.architecture in IN_BLOCKS
    options = SessionOptions(256, 1, 32, "f32", flash_attention=flash, memory=memory)
    return Session(model, options)


def of_a_new_session(model: Model, tokens: list[int]) -> np.ndarray:
    with opened(model) as session:
        return session.logits(tokens)[-1]


def over_full(model: Model, policy: str) -> None:
    with opened(model, policy) as session:
        session.evaluate(IDS[:250])
        session.evaluate([*IDS, *IDS[:20]])


def test_a_text_is_cut_back_and_kept(model: Model, tmp_path: Path) -> None:
    with opened(model) as session:
        session.evaluate(IDS[:140])
        text = [*IDS[:60], *IDS[5:85]]
        assert session.evaluate(text).reused == 60
        difference = session.last_logits() - of_a_new_session(model, text)
        assert np.abs(difference).max() <= CLOSE
        store.save(tmp_path / "state", session, store.session_key(session))
    with opened(model) as session:
        key = store.session_key(session)
        assert store.restore(tmp_path / "state", session, key) == 140
        assert session.evaluate([*text, 9, 8]).reused == 140
        difference = session.last_logits() - of_a_new_session(model, [*text, 9, 8])
        assert np.abs(difference).max() <= CLOSE


@pytest.mark.parametrize("policy", ["stream", "self-extend", "landmark", "compress"])
def test_policies_that_move_keys_are_refused(model: Model, policy: str) -> None:
    reason = "a form that ggext cannot edit"
    if model.architecture in IN_BLOCKS:
        reason = rf"does not do in a cache that is edited \({policy}\)"
    with pytest.raises(ModelError, match=reason):
        over_full(model, policy)


def test_a_full_context_is_read_again(model: Model) -> None:
    with opened(model, "recompute") as session:
        session.evaluate([*IDS, *IDS[:60]])
        kept = list(session.tokens)
        difference = session.last_logits() - of_a_new_session(model, kept)
        assert np.abs(difference).max() <= 1e-3


def test_blocks_are_chosen_whatever_is_asked(tmp_path: Path) -> None:
    """Without flash attention llama.cpp attends to everything and says so in its log alone."""
    path = write_random(tmp_path / "model.gguf", "minimax-m3")
    with Model.open(path) as model:
        with pytest.raises(ModelError, match="with flash attention alone"):
            Session(model, SessionOptions(64, flash_attention=False))
        with pytest.raises(ModelError, match=r"edited \(dynamic_ntk=rotate\)"):
            Session(model, SessionOptions(64, dynamic_ntk="rotate"))
        shifted = measure_shifts(model)
        assert all(row.kl <= 10 * row.noise for row in shifted)
        assert all(abs(row.k_norm - 1) <= 1e-6 for row in shifted)
        with Session(model, SessionOptions(64)) as session:
            assert session.cache.flash_attention
            assert np.isfinite(session.logits(IDS[:64])).all()
