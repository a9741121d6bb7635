"""A seed gives the same answer, whatever is cached."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_turns import TEXT

pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext import Model, Sampling, SessionOptions
from ggext.runtime import store
from ggext.runtime.engine import Model as Weights
from ggext.runtime.engine import Session


@pytest.mark.parametrize("when", ["after an answer", "after a part of it", "restored"])
def test_a_seed_gets_the_logits_of_an_empty_cache(
    demo_gguf: Path, tmp_path: Path, when: str
) -> None:
    """2 of 6 answers differed with the same seed: what follows a cached part was read in other
    batches, and answers in the cache had been evaluated token by token."""
    options = SessionOptions(n_ctx=1024, n_batch=32)
    with (
        Weights.open(demo_gguf) as weights,
        Session(weights, options) as session,
        Session(weights, options) as fresh,
    ):
        tokens = weights.tokenize(TEXT)[:200]
        if when == "after a part of it":
            session.evaluate(tokens[:77])
        session.evaluate(tokens, repeatable=True)
        tokens += list(session.generate(Sampling(temperature=2, seed=1), 70))
        if when == "restored":
            key = store.session_key(session)
            store.save(tmp_path / "kv.bin", session, key)
            session.clear()
            store.restore(tmp_path / "kv.bin", session, key)
        tokens += weights.tokenize("Where is the map?", add_special=False)
        prefill = session.evaluate(tokens, repeatable=True)
        fresh.evaluate(tokens)
        assert (session.last_logits() == fresh.last_logits()).all()
        assert prefill.reused == 192  # the whole batches of what was read at once


def test_the_same_seed_gives_the_same_answer_whatever_is_cached(
    demo_gguf: Path,
) -> None:
    warm = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=11)
    turns = [{"role": "user", "content": TEXT}]
    with Model(demo_gguf, context=1024) as model:
        first = model.chat(turns, sampling=warm, max_tokens=60)
        turns += [{"role": "assistant", "content": first.text()}]
        turns += [{"role": "user", "content": "Where is the map?"}]
        second = model.chat(turns, sampling=warm, max_tokens=200)
        said = second.text()
        assert second.prefill is not None
        assert second.prefill.reused > 0
    with Model(demo_gguf, context=1024) as model:
        assert model.chat(turns, sampling=warm, max_tokens=200).text() == said
