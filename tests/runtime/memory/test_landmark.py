"""What left a context and is looked up again."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from full_contexts import SMALL, options

from ggext.data import demo_language as language

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.chat.conversation import ChatOptions, Conversation  # noqa: E402
from ggext.runtime.cell_types import floats  # noqa: E402
from ggext.runtime.engine import Model, Sampling, Session, SessionOptions  # noqa: E402
from ggext.runtime.memory import WhenFull  # noqa: E402
from ggext.runtime.memory.compress import Compress  # noqa: E402
from ggext.runtime.memory.landmark import Landmark  # noqa: E402
from ggext.runtime.memory.outside import Outside  # noqa: E402

GREEDY = Sampling(temperature=0)
HEAD_OF_DEMO = 32  # values of a head of the embedded model


def recall(model: Model, made: SessionOptions, count: int) -> int:
    """Of `count` questions about texts of 900 tokens, how many are answered to the letter."""
    rng = random.Random("needles")
    right = 0
    with Session(model, made) as session:
        conversation = Conversation(model, session, GREEDY, ChatOptions(max_tokens=12))
        for _ in range(count):
            told = language.facts(rng, language.RECALL_FACTS)
            document = language.document(rng, told, 900)
            early = min(told, key=lambda fact: document.index(fact.sentence()))
            sample = language.RecallSample(
                document,
                language.question(early.key),
                language.answer(early.key, early.place),
            )
            conversation.clear()
            right += (
                "".join(conversation.ask(language.opening(sample))).strip()
                == sample.answer
            )
    return right


def test_landmark_finds_what_left_the_window_and_stream_does_not(
    model: Model, tmp_path: Path
) -> None:
    """The first fact of each text; by chance one place of 32 is right."""
    assert recall(model, options("landmark", 512, retrieved=128), 8) >= 7
    assert (
        recall(model, options("landmark", 512, retrieved=128, spill=tmp_path), 8) >= 7
    )
    assert recall(model, options("stream", 512), 8) <= 2


@pytest.mark.parametrize("policy", ["landmark", "compress"])
def test_passages_are_read_in_front_of_the_question(
    model: Model, text: list[int], policy: WhenFull
) -> None:
    """The logits are those of a cache that has the cells in front of the passages, the passages,
    and the question."""
    made = options(policy, kv_type="f32", evicted="kept", evict=48, **SMALL)
    with Session(model, made) as session, Session(model, made) as other:
        # The last batch holds the whole question.
        session.evaluate(text[:610])
        memory = session.memory
        assert isinstance(memory, Landmark | Compress)
        assert memory.retrieval is not None
        there = memory.retrieval.passages
        assert there is not None
        outside = memory.retrieval.outside
        assert outside._tokens.tolist() == text[4 : 4 + session.dropped]
        wanted = session.last_logits()
        question = session.tokens[there.index :]
        assert len(question) == 32
        first = session.cache.positions[there.index] - there.count
        assert session.cache.positions[there.index - 1] == first - 1
        queries = queries_of(session, [*session.tokens], 32)
        passages = outside.tokens(outside.find(queries, 64) or ())
        assert len(passages) == there.count == 64
        other.cache.put(session.cache.take(0, first))
        other.cache.tokens, other.cache.positions = [0] * first, [*range(first)]
        other.cache.append_all([*passages, *question])
        np.testing.assert_allclose(wanted, other.last_logits(), atol=1e-3)


def queries_of(session: Session, tokens: list[int], count: int) -> list[np.ndarray]:
    """Those of the last tokens, over the text without what came back."""
    assert isinstance(session.memory, Landmark | Compress)
    assert session.memory.retrieval is not None
    retrieval, cache = session.memory.retrieval, session.cache
    kept, positions, own = [*cache.tokens], [*cache.positions], retrieval.passages
    snapshot = session.cache.snapshot()
    retrieval.leave()
    cache.cut(len(tokens) - count)
    with cache.queries.watching(cache.rotation().layers):
        cache.append(tokens[-count:])
    queries = cache.queries.take(cache.rotation())
    cache.restore(kept, snapshot, positions)
    retrieval.passages = own
    return queries


def attention(outside: Outside, queries: list[np.ndarray]) -> np.ndarray:
    """What `Outside` computes in parts, by its definition: of each token the largest share of a
    query of a head, over the layers that it has."""
    most = np.zeros(len(outside))
    for kept in range(len(queries)):
        kind, columns = outside._kinds[kept]
        rows = np.concatenate(
            [floats(kind, r[:, columns]) for r in outside._rows or ()]
        )
        keys = rows.reshape(len(rows), -1, HEAD_OF_DEMO)
        tokens, heads, _ = queries[kept].shape
        for token in range(tokens):
            for head in range(heads):
                key = keys[:, head // (heads // keys.shape[1])].astype(np.float64)
                scores = key @ queries[kept][token, head] / math.sqrt(HEAD_OF_DEMO)
                shares = np.exp(scores - scores.max())
                most = np.maximum(most, shares / shares.sum())
    return most


def test_the_look_up_is_attention_over_all_that_left(
    model: Model, text: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggext.runtime.memory.outside._BLOCK", 100)
    with Session(model, options("landmark", kv_type="f32", **SMALL)) as session:
        session.evaluate(text[:900])
        assert isinstance(session.memory, Landmark)
        outside = session.memory.retrieval.outside
        assert len(list(outside._rows or ())) > 5
        rng = np.random.default_rng(1)
        rotation = session.cache.rotation()
        assert [*rotation.layers.looked_through] == [1]  # of 3
        example = rotation.upright(
            session.cache.take(0, 1), rotation.layers.looked_through
        )
        queries = [
            rng.normal(size=(3, 2 * keys.shape[1], HEAD_OF_DEMO)).astype(np.float32)
            for keys in example
        ]
        wanted = attention(outside, queries)
        np.testing.assert_allclose(
            np.exp(outside._attention(queries)), wanted, rtol=1e-3, atol=1e-6
        )
        runs, first = outside.find(queries, 64), int(wanted.argmax())
        assert runs is not None
        assert sum(end - start for start, end in runs) == 64
        assert any(start <= first < end for start, end in runs)
        # 34 bytes for 32 values, and 4 bytes for the token.
        width = sum(keys[0].size for keys in example)
        assert outside.nbytes == len(outside) * (width * 34 // 32 + 4)
