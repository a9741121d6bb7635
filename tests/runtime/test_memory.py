"""What stays when the context is full: each policy against its oracle."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import SHARED
from tiny_gguf import HEAD, N_EMBD, N_KV, write_random

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.data import demo_language as language
from ggext.errors import ContextFullError, GgextError, ModelError, UsageError
from ggext.footprint.cache import KV_TYPES
from ggext.footprint.planner import Choices, Memories
from ggext.rope.encoding import EncodingName
from ggext.rope.scaling import RopeScaling

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.chat.conversation import ChatOptions, Conversation  # noqa: E402
from ggext.quality.perplexity import nll  # noqa: E402
from ggext.runtime import capacity, state  # noqa: E402
from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.cell_types import floats  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session, SessionOptions  # noqa: E402
from ggext.runtime.memory import POLICIES, WhenFull  # noqa: E402
from ggext.runtime.memory.compress import Compress  # noqa: E402
from ggext.runtime.memory.landmark import Landmark  # noqa: E402
from ggext.runtime.memory.outside import Outside  # noqa: E402

GREEDY = Sampling(temperature=0)
HEAD_OF_DEMO = 32  # values of a head of the embedded model
SMALL = {"retrieved": 64}  # what a cache of 256 tokens has room for


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    """YaRN in keys, with a gain of 1.2: what llama.cpp's own shift destroys."""
    with Model.open(demo_gguf) as model:
        yield model


@pytest.fixture(scope="module")
def text(model: Model) -> list[int]:
    """1,500 tokens of a text."""
    rng = random.Random("text")
    document = language.document(rng, language.facts(rng, language.RECALL_FACTS), 1498)
    return model.tokenize(
        f"{language.BOS}{language.USER}{document}",
        add_special=False,
        parse_special=True,
    )


def options(
    when_full: WhenFull, n_ctx: int = 256, kv_type: str = "f16", **memory: Any
) -> SessionOptions:
    return SessionOptions(
        n_ctx=n_ctx, kv_type=kv_type, memory=MemoryOptions(when_full, **memory)
    )


def baked(folder: Path, encoding: EncodingName | None = None) -> Path:
    out = folder / f"{encoding}.gguf"
    convert(
        ConvertOptions(
            DEMO_MODEL, out, RopeScaling("yarn", factor=8), encoding=encoding
        )
    )
    return out


def perplexity(model: Model, tokens: list[int], made: SessionOptions) -> float:
    with Session(model, made) as session:
        return math.exp(nll(session, tokens).mean())


def next_logits(session: Session) -> Any:
    pointer = session.cache.lib.llama_get_logits_ith(session.cache.handle, -1)
    return np.ctypeslib.as_array(pointer, (session.model.n_vocab,)).copy()


def test_stream_reads_as_well_as_recompute(model: Model, text: list[int]) -> None:
    streamed = perplexity(model, text, options("stream"))
    rebuilt = perplexity(model, text, options("recompute"))
    assert streamed == pytest.approx(rebuilt, rel=0.03)
    assert streamed < 10


@pytest.mark.shared("models/stories260K", "texts/tinystories.txt")
def test_stream_reads_a_book_as_well_as_recompute(stories_gguf: Path) -> None:
    with Model.open(stories_gguf) as model:
        tokens = model.tokenize((SHARED / "texts/tinystories.txt").read_text())[:4000]
        figures = [
            perplexity(model, tokens, options(policy))
            for policy in ("stream", "recompute")
        ]
    assert figures[0] == pytest.approx(figures[1], rel=0.03)


@pytest.mark.parametrize("policy", ["stream", "self-extend"])
def test_keys_with_a_gain_are_moved_as_exactly_as_folded_ones(
    model: Model, text: list[int], tmp_path: Path, policy: WhenFull
) -> None:
    made = (
        options(policy, kv_type="f32")
        if policy == "stream"
        else options(policy, 1536, "f32")
    )
    with Model.open(baked(tmp_path, "folded")) as folded:
        other = perplexity(folded, text, made)
    assert perplexity(model, text, made) == pytest.approx(other, rel=1e-5)


def test_moved_keys_are_those_of_a_fresh_evaluation_in_layer_0(
    model: Model, text: list[int]
) -> None:
    """Layer 0's keys depend on the token and its position alone, so a moved one has an exact
    oracle."""
    with (
        Session(model, options("stream", kv_type="f32")) as session,
        Cache(model, options("stream", 256, "f32")) as fresh,
    ):
        session.evaluate(text[:600])
        kept = session.cache.tokens
        for i in range(0, len(kept), 64):
            fresh.append(kept[i : i + 64])
        moved, right = (cache.take(0, len(kept)) for cache in (session.cache, fresh))
        assert session.dropped == 600 - len(kept) > 300
    first, second = (block.keys[0].view("<f4") for block in (moved, right))
    assert np.abs(first - second).max() < 1e-4 * np.abs(second).max()


@pytest.mark.parametrize("policy", ["stream", "self-extend", "landmark", "compress"])
def test_coarse_keys_are_not_moved(model: Model, policy: WhenFull) -> None:
    with pytest.raises(
        ModelError,
        match=rf"when_full='{policy}' moves cached keys.*kv type q4_0.*f16 or q8_0; recompute",
    ):
        Session(model, options(policy, 1024, "q4_0"))


@pytest.mark.parametrize("policy", ["stream", "landmark", "compress"])
def test_q8_0_keys_are_moved(model: Model, text: list[int], policy: WhenFull) -> None:
    exact, near = (
        perplexity(model, text[:900], options(policy, 256, kv_type, **SMALL))
        for kv_type in ("f16", "q8_0")
    )
    assert near == pytest.approx(exact, rel=0.02)


def test_moved_q8_0_keys_are_those_of_a_fresh_evaluation(tmp_path: Path) -> None:
    """Heads of 64 values, which llama.cpp turns by a Hadamard matrix before it quantizes them. In
    layer 0 a key depends on its token and its position alone."""
    pytest.importorskip("torch")
    from tiny import make_llama

    path = tmp_path / "m.gguf"
    convert(ConvertOptions(make_llama(tmp_path / "model", head_dim=64), path))
    tokens = [3 + i * i % 90 for i in range(60)]
    with Model.open(path) as wide:
        made = SessionOptions(
            n_ctx=256, kv_type="q8_0", memory=MemoryOptions("stream", evict=16)
        )
        with Cache(wide, made) as cache:
            cache.append(tokens)
            moved = cache.rotation().moved(
                cache.take(0, 60), np.arange(70, 130, dtype=np.int32)
            )
            cache.clear()
            cache.append([5] * 70)
            cache.append(tokens)
            wanted = cache.take(70, 130)
            have, exact = (
                cache.rotation().upright(block)[0] for block in (moved, wanted)
            )
    # A step of q8_0 is a 127th of the largest of 32 values.
    assert np.abs(have - exact).max() < 2 / 127 * np.abs(exact).max()


def test_recompute_works_with_quantized_keys(model: Model, text: list[int]) -> None:
    exact = perplexity(model, text, options("recompute"))
    assert perplexity(
        model, text, options("recompute", kv_type="q8_0")
    ) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "stop"])
def test_a_long_text_is_read_to_its_end_and_goes_on(
    model: Model, text: list[int], policy: WhenFull
) -> None:
    n_ctx = 2000 if policy == "self-extend" else 256
    with Session(model, options(policy, n_ctx, **SMALL)) as session:
        prefill = session.evaluate(text)
        assert (prefill.reused, prefill.evaluated, prefill.cancelled) == (
            0,
            1500,
            False,
        )
        assert session.used + session.dropped == 1500
        assert session.tokens[:4] == tuple(text[:4])
        assert session.tokens[4:] == tuple(text[4 + session.dropped :])
        assert len(list(session.generate(Sampling(temperature=5, seed=1), 300))) > 0
        again = session.evaluate(text)
        assert again.evaluated <= 1500


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "stop"])
def test_what_left_is_remembered_as_the_same_text(
    model: Model, text: list[int], policy: WhenFull
) -> None:
    n_ctx = 2000 if policy == "self-extend" else 256
    with Session(model, options(policy, n_ctx, **SMALL)) as session:
        session.evaluate(text[:1000])
        longer = session.evaluate(text[:1010])
        assert (longer.reused, longer.evaluated) == (1000, 10)
        other = [*text[:500], text[0], *text[501:1010]]
        changed = session.evaluate(other)
        assert changed.reused == (4 if policy != "self-extend" else changed.reused)
        assert changed.reused <= 500
        assert session.tokens[4:] == tuple(other[4 + session.dropped :])


@pytest.mark.parametrize("policy", ["stream", "landmark", "compress", "recompute"])
def test_the_same_text_gives_the_same_logits_whatever_was_there_before(
    model: Model, text: list[int], policy: WhenFull
) -> None:
    with Session(model, options(policy, **SMALL)) as session:
        session.evaluate(text[:700])
        wanted = next_logits(session)
        session.evaluate([*text[:2], *text[900:1300]])
        session.clear()
        session.evaluate(text[:700])
        np.testing.assert_allclose(next_logits(session), wanted, atol=0.05)


def test_recompute_is_a_fresh_evaluation_of_its_window(
    model: Model, text: list[int]
) -> None:
    with (
        Session(model, options("recompute", kv_type="f32")) as session,
        Session(model, options("stop")) as fresh,
    ):
        session.evaluate(text[:255])
        session.memory.make_room(40)
        session.cache.append(text[255:256])
        fresh.evaluate(session.tokens)
        np.testing.assert_allclose(next_logits(session), next_logits(fresh), atol=0.02)


def test_recompute_that_is_cancelled_keeps_a_true_account(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("recompute")) as session:
        session.evaluate(text[:250])
        session.cancel()
        assert not session.memory.make_room(63)
        session.resume()
        prefill = session.evaluate(text[:300])
        assert prefill.reused + prefill.evaluated == 300
        assert session.tokens[4:] == tuple(text[4 + session.dropped : 300])


def test_self_extend_meets_no_position_beyond_the_file_s(
    tmp_path: Path, text: list[int]
) -> None:
    """The embedded model without any scaling is made for 256 tokens."""
    path = tmp_path / "plain.gguf"
    convert(ConvertOptions(DEMO_MODEL, path, RopeScaling("none")))
    with Model.open(path) as plain:
        plainly = perplexity(plain, text[:1100], SessionOptions(n_ctx=1200))
        made = options("self-extend", 1200, group=16)
        with Session(plain, made) as session:
            assert math.exp(nll(session, text[:1100]).mean()) < 0.9 * plainly
            positions = session.cache.positions
        assert len(positions) == 1099  # the last token's logits are of no use
        assert max(positions) < 256
        assert positions == sorted(positions)
        with (
            Session(plain, options("self-extend", 4000, group=4)) as session,
            pytest.raises(ContextFullError),
        ):
            session.evaluate(text)


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


def test_landmark_s_files_go_when_it_is_closed(
    model: Model, text: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "spill"
    folder.mkdir()
    with Session(model, options("landmark", spill=folder, **SMALL)) as session:
        session.evaluate(text[:600])
        assert len(list(folder.rglob("*"))) > 5  # the folder and its files
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("policy", ["landmark", "compress"])
def test_passages_are_read_in_front_of_the_question(
    model: Model, text: list[int], policy: WhenFull
) -> None:
    """The logits are those of a cache that has the cells in front of the passages, the passages,
    and the question."""
    made = options(policy, kv_type="f32", evicted="kept", **SMALL)
    with Session(model, made) as session, Session(model, made) as other:
        session.evaluate(text[:600])
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
        passages = outside.tokens(outside.find(queries, 64))
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
    with cache.queries.watching():
        cache.append(tokens[-count:])
    queries = cache.queries.take(cache.rotation())
    cache.restore(kept, snapshot, positions)
    retrieval.passages = own
    return queries


def attention(outside: Outside, queries: list[np.ndarray]) -> np.ndarray:
    """What `Outside` computes in parts, by its definition: of each token the largest share of a
    query of a head, over every second of the latter layers."""
    most = np.zeros(len(outside))
    for kept, layer in enumerate(range(len(queries) // 2, len(queries), 2)):
        rows = np.concatenate([floats(*part[kept]) for part in outside._parts])
        keys = rows.reshape(len(rows), -1, HEAD_OF_DEMO)
        tokens, heads, _ = queries[layer].shape
        for token in range(tokens):
            for head in range(heads):
                key = keys[:, head // (heads // keys.shape[1])].astype(np.float64)
                scores = key @ queries[layer][token, head] / math.sqrt(HEAD_OF_DEMO)
                shares = np.exp(scores - scores.max())
                most = np.maximum(most, shares / shares.sum())
    return most


def test_the_look_up_is_attention_over_all_that_left(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("landmark", kv_type="f32", **SMALL)) as session:
        session.evaluate(text[:900])
        assert isinstance(session.memory, Landmark)
        outside = session.memory.retrieval.outside
        assert len(outside._parts) > 5
        rng = np.random.default_rng(1)
        example = session.cache.rotation().upright(session.cache.take(0, 1))
        queries = [
            rng.normal(size=(3, 2 * keys.shape[1], HEAD_OF_DEMO)).astype(np.float32)
            for keys in example
        ]
        wanted = attention(outside, queries)
        np.testing.assert_allclose(
            np.exp(outside._attention(queries)), wanted, rtol=1e-3, atol=1e-6
        )
        runs, first = outside.find(queries, 64), int(wanted.argmax())
        assert sum(end - start for start, end in runs) == 64
        assert any(start <= first < end for start, end in runs)
        # Keys of 1 of 3 layers, 34 bytes for 32 values, and 4 bytes for the token.
        width = sum(keys[0].size for keys in example[1::2])
        assert outside.nbytes == len(outside) * (width * 34 // 32 + 4)


def test_compress_loses_nothing_before_the_context_is_full(
    model: Model, text: list[int]
) -> None:
    with (
        Session(model, options("compress", 512, kv_type="f32")) as session,
        Session(model, options("stop", 512, kv_type="f32")) as whole,
    ):
        assert session.evaluate(text[:512]).evaluated == 512
        whole.evaluate(text[:512])
        assert session.dropped == 0
        np.testing.assert_array_equal(session.last_logits(), whole.last_logits())


def keydiff(layers: list[np.ndarray]) -> np.ndarray:
    """KeyDiff by its definition, one key at a time: mean over layers and heads of the standardized
    unlikeness, then over nine neighbours."""
    scores = []
    for keys in layers:
        for head in range(keys.shape[1]):
            unit = [
                key / np.linalg.norm(key) for key in keys[:, head].astype(np.float64)
            ]
            mean = np.mean(unit, axis=0)
            unlike = np.array([-(key @ mean) / np.linalg.norm(mean) for key in unit])
            scores.append((unlike - unlike.mean()) / unlike.std())
    each = np.mean(scores, axis=0)
    ends = [each[0]] * 4, [each[-1]] * 4
    return np.array(
        [np.mean(np.r_[ends[0], each, ends[1]][i : i + 9]) for i in range(len(each))]
    )


def test_compress_keeps_whole_tokens_that_stand_out(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("compress", kv_type="f32")) as session:
        session.evaluate(text[:256])
        memory, rotation = session.memory, session.cache.rotation()
        assert isinstance(memory, Compress)
        before = session.cache.take(4, 256)
        session.memory.make_room(1)
        # 64 leave at once; the last 32 are not touched
        assert (len(session.tokens), memory.selected, session.dropped) == (36, 156, 220)
        assert session.cache.positions == [*range(4), *range(160, 192)]
        chosen = np.sort(
            np.argsort(-keydiff(rotation.upright(before))[:220], kind="stable")[:156]
        )
        after = session.cache.take(4, 192)
        stays = before.cells(np.r_[chosen, 220:252])
        assert after.positions.tolist() == [*range(4, 192)]
        for there, here in zip(stays.values, after.values, strict=True):
            np.testing.assert_array_equal(there, here)
        for there, here in zip(
            rotation.upright(stays), rotation.upright(after), strict=True
        ):
            np.testing.assert_allclose(there, here, atol=1e-4)


def test_what_compress_keeps_is_what_the_answer_attends_to(
    model: Model, text: list[int]
) -> None:
    """The logits are those of a cache that never had anything but the chosen cells."""
    with (
        Session(model, options("compress", kv_type="f32")) as session,
        Session(model, options("stream", kv_type="f32")) as other,
    ):
        session.evaluate(text[:256])
        session.memory.make_room(1)
        cells = session.cache.take(0, 192)
        session.memory.write(text[256])
        other.cache.put(cells)
        other.cache.tokens, other.cache.positions = [0] * 192, [*range(192)]
        other.cache.append_one(text[256])
        np.testing.assert_allclose(
            session.last_logits(), other.last_logits(), atol=1e-4
        )


def test_compress_reads_what_comes_after_in_the_cells_that_it_freed(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("compress")) as session:
        memory = session.memory
        assert isinstance(memory, Compress)
        for length in range(100, 1400, 100):
            session.evaluate(text[:length])
            assert session.used + session.dropped == length
            assert session.used + memory.selected <= 256
            cells = session.cache.take(0, 4096).positions.tolist()
            assert cells == [*range(session.used + memory.selected)]
        assert session.evaluate([*text[:1300], 5]).reused == 1300
        assert session.evaluate(text[:40]).reused == 4
        assert memory.selected == 0


def test_compress_now(model: Model, text: list[int]) -> None:
    """Before the context is full, to any number of cells."""
    with Session(model, options("compress")) as session:
        memory = session.memory
        assert isinstance(memory, Compress)
        session.evaluate(text[:200])
        memory.reduce(200)
        assert session.dropped == 0
        memory.reduce(100)
        assert session.used + memory.selected == 100
        assert session.used + session.dropped == 200
        memory.reduce(0)
        assert (session.used, memory.selected) == (36, 0)
        assert session.evaluate(text[:300]).reused == 200


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("flash", [False, True])
def test_a_state_reads_as_it_was_written(
    model: Model, text: list[int], kv_type: str, flash: bool
) -> None:
    made = SessionOptions(
        n_ctx=256,
        kv_type=kv_type,
        flash_attention=flash,
        memory=MemoryOptions("stream"),
    )
    with Cache(model, made) as cache:
        cache.append(text[:50])
        block = cache.take(10, 40)
        assert block.positions.tolist() == list(range(10, 40))
        assert block.form.transposed is not flash
        assert (
            state.parse(state.build(block, 0)).cells(slice(None)).values[2].tolist()
            == block.values[2].tolist()
        )
        cache.remove(10, 40)
        cache.put(block)
        assert cache.append([5])
        again = cache.take(10, 40)
    for first, second in zip(
        (*block.keys, *block.values), (*again.keys, *again.values), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_a_state_that_is_cut_or_changed_is_refused(
    model: Model, text: list[int]
) -> None:
    with Cache(model, options("stream")) as cache:
        cache.append(text[:5])
        data = bytearray(state.build(cache.take(0, 5), 1))
    assert len(state.parse(data)) == 5
    for size in range(0, len(data), 7):
        with pytest.raises(ModelError, match="cannot edit"):
            state.parse(data[:size])
    rng = random.Random(0)
    for _ in range(300):
        hostile = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            hostile[rng.randrange(len(hostile) if rng.random() < 0.3 else 120)] = (
                rng.randrange(256)
            )
        try:
            state.parse(hostile)
        except ModelError:
            continue


def test_a_state_of_another_form_is_told_at_the_first_move(
    model: Model, text: list[int]
) -> None:
    with Session(model, options("stream")) as session:
        session.cache.cells._read_scratch = lambda: state.parse(b"\0" * 64)  # type: ignore[method-assign]
        with pytest.raises(
            ModelError, match="keeps its cache in a form that ggext cannot edit"
        ):
            session.evaluate(text[:300])


def test_what_is_written_and_reads_otherwise_is_refused(
    model: Model, text: list[int]
) -> None:
    with Cache(model, options("stream")) as cache:
        cache.append(text[:20])
        block = cache.take(0, 20)
        cache.cells._read_scratch = lambda: block.cells(slice(0, 19))  # type: ignore[method-assign]
        with pytest.raises(ModelError, match="does not read as it was written"):
            cache.put(block)


@pytest.mark.parametrize(
    ("memory", "problem"),
    [
        ({"when_full": "forget"}, "when_full is 'forget'"),
        ({"sinks": 0}, "sinks is 0"),
        ({"evict": 0}, "evict is 0"),
        ({"evicted": "lost"}, "evicted is 'lost'"),
        (
            {"when_full": "landmark", "evicted": "dropped"},
            "landmark brings back what left",
        ),
        (
            {"when_full": "stream", "evicted": "kept"},
            "take one of them in place of stream",
        ),
        ({"retrieved": 0}, "retrieved is 0"),
        ({"group": 1}, "group is 1"),
    ],
)
def test_sizes_out_of_range_are_refused(memory: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        MemoryOptions(**memory)


def test_a_context_too_small_for_its_policy_is_refused(model: Model) -> None:
    with pytest.raises(
        UsageError,
        match=r"landmark: 4 sinks, 512 reserved.* need a context of 660 tokens or more",
    ):
        Session(model, options("landmark", 256))


def test_keys_of_an_architecture_that_is_not_established_are_not_moved(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggext.rope.capabilities.CAPABILITIES", {})
    with pytest.raises(
        ModelError,
        match=r"when_full='stream' moves cached keys: .*'llama'.* recompute works with every file",
    ):
        Session(model, options("stream"))
    Session(model, options("recompute")).close()


def test_a_rotation_that_is_not_llama_s_is_found_before_anything_is_moved(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an architecture that rotates some layers otherwise, or whose layout is not the one in
    the table."""
    for kv_type in ("f32", "f16", "bf16"):
        with Cache(model, options("stream", kv_type=kv_type)) as cache:
            assert cache.rotation_error() < (1e-4 if kv_type == "f32" else 0.02)
            cache.rotation()._layout = "neox"
            assert cache.rotation_error() > 0.3
    monkeypatch.setattr(Cache, "rotation_error", lambda _: 0.5)
    with pytest.raises(
        ModelError,
        match=r"llama.cpp turns those of this file otherwise \(by 0.5\); recompute works",
    ):
        Session(model, options("stream"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_keys_that_are_no_numbers_are_not_moved(tmp_path: Path, value: float) -> None:
    """Their difference is none either, and would pass for a rotation that is right."""
    weight = np.full((N_KV * HEAD, N_EMBD), value, "<f4")
    path = write_random(
        tmp_path / "m.gguf", "llama", extra_tensors={"blk.1.attn_k.weight": weight}
    )
    with (
        Model.open(path) as model,
        pytest.raises(ModelError, match=r"no finite numbers: its weights are damaged"),
    ):
        Session(model, options("stream"))


def test_a_move_that_fails_leaves_an_empty_cache_and_a_usable_session(
    model: Model, text: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    policies: tuple[WhenFull, ...] = ("stream", "landmark", "compress")
    for policy in policies:
        with Session(model, options(policy, **SMALL)) as session:
            session.evaluate(text[:150])
            monkeypatch.setattr(Cache, "put", fail)
            with pytest.raises(KeyboardInterrupt):
                session.evaluate(text[:700])
            monkeypatch.undo()
            assert session.tokens == ()
            prefill = session.evaluate(text[:700])
            assert (prefill.reused, prefill.evaluated) == (0, 700)
            assert session.used + session.dropped == 700


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_every_kv_type_answers(model: Model, text: list[int], kv_type: str) -> None:
    exact = perplexity(model, text[:300], SessionOptions(n_ctx=512, kv_type="f32"))
    other = perplexity(model, text[:300], SessionOptions(n_ctx=512, kv_type=kv_type))
    assert other == pytest.approx(exact, rel=0.5 if kv_type.startswith("q4") else 0.1)


def test_kv_bytes_are_what_llama_allocates(model: Model) -> None:
    for kv_type in ("f16", "q8_0", "q4_0"):
        with Session(
            model, options("stream" if kv_type == "f16" else "stop", kv_type=kv_type)
        ) as session:
            session.evaluate([5] * 100)
            lib = session.cache.lib
            size = lib.llama_state_seq_get_size(session.cache.handle, 0)
        room = capacity.room(model, Choices(kv_type))
        assert room is not None
        cells = 100 * (
            room.planner.shares(room.planner.context(256, Memories(room.free)))[0].cache
            // 256
            + 12
        )
        assert cells <= size <= cells + 1000


def test_heads_that_blocks_do_not_divide_are_refused_first(tmp_path: Path) -> None:
    with Model.open(write_random(tmp_path / "small.gguf", "llama")) as model:
        with pytest.raises(
            ModelError,
            match="key heads of 16 values, which the blocks of 32 of kv type q8_0",
        ):
            Session(model, SessionOptions(n_ctx=64, kv_type="q8_0"))
        with Session(model, SessionOptions(n_ctx=64)) as session:
            assert session.evaluate([5, 6]).evaluated == 2


def test_quantized_values_without_flash_attention_are_refused_first() -> None:
    with pytest.raises(
        UsageError, match="q8_0 needs flash attention, which is switched off"
    ):
        SessionOptions(kv_type="q8_0", flash_attention=False)


@pytest.mark.parametrize(
    "policy", ["stream", "landmark", "compress", "recompute", "self-extend"]
)
def test_random_cancels_never_part_tokens_and_cache(
    model: Model, text: list[int], policy: WhenFull
) -> None:
    n_ctx = 1600 if policy == "self-extend" else 256
    rng = random.Random(policy)
    with Session(model, options(policy, n_ctx, **SMALL)) as session:
        for _ in range(12):
            timer = threading.Timer(rng.random() * 0.02, session.cancel)
            timer.start()
            length = rng.randrange(100, 1500)
            prefill = session.evaluate(text[:length])
            timer.join()
            session.resume()
            assert prefill.reused + prefill.evaluated == length or prefill.cancelled
            if (
                policy != "recompute"
            ):  # which has no second sequence to take cells out by
                positions = session.cache.take(0, 4096).positions
                assert set(session.cache.positions) <= set(positions.tolist())
            assert session.tokens[4:] == tuple(
                text[4 + session.dropped : 4 + session.dropped + session.used - 4]
            )


def test_the_chat_streams_what_is_longer_than_its_context(
    demo_gguf: Path, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from ggext.cli import main
    from ggext.demo import sample_text

    (tmp_path / "text.txt").write_text(sample_text(900))
    question = [
        str(demo_gguf),
        "-f",
        str(tmp_path / "text.txt"),
        "-p",
        "Where is the map?",
        "--temperature",
        "0",
    ]
    small = CliRunner().invoke(main, ["chat", *question, "--ctx", "256"])
    assert small.exit_code == 3
    assert "the text does not fit into the context" in small.stderr
    streamed = CliRunner().invoke(
        main, ["chat", *question, "--ctx", "256", "--when-full", "stream"]
    )
    assert streamed.exit_code == 0
    assert "of the oldest tokens left it" in streamed.stderr
    assert streamed.stdout.startswith("Look for the map")
    quantized = CliRunner().invoke(main, ["chat", *question, "--kv", "q8_0"])
    assert quantized.stdout == "Look for the map below.\n"
    refused = CliRunner().invoke(main, ["chat", *question, "--kv", "q3_0"])
    assert refused.exit_code == 2
    assert "kv_type is 'q3_0', but must be one of f16" in refused.stderr


def test_a_text_is_held_in_a_share_of_its_cells(model: Model, text: list[int]) -> None:
    made = SessionOptions(n_ctx=1000, memory=MemoryOptions("compress", keep=0.25))
    with Session(model, made) as session:
        assert session.n_ctx == 250
        session.evaluate(text[:1000])
        assert session.used + session.dropped == 1000
    with Session(
        model, SessionOptions(memory=MemoryOptions("compress", keep=0.25))
    ) as session:
        assert session.n_ctx == model.n_ctx_train // 4
    with Session(
        model, SessionOptions(n_ctx=300, memory=MemoryOptions("compress"))
    ) as session:
        assert session.n_ctx == 300


def test_a_share_that_is_none_is_refused() -> None:
    for keep in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(UsageError, match="must be a share above 0, at most 1"):
            MemoryOptions("compress", keep=keep)
    with pytest.raises(
        UsageError, match=r"keep is 0.5, but only the policy compress reads"
    ):
        MemoryOptions("stream", keep=0.5)


def test_only_compress_compresses(model: Model, text: list[int]) -> None:
    with Session(model, options("compress")) as session:
        session.evaluate(text[:200])
        session.compress(0.5)
        assert session.used + session.dropped == 200
        assert session.memory.account() == {"selected": 100 - session.used}
        with pytest.raises(
            UsageError, match="share is 0, but must be above 0, at most 1"
        ):
            session.compress(0)
    with (
        Session(model, options("stream")) as session,
        pytest.raises(UsageError, match="can be compressed, not one of stream"),
    ):
        session.compress(0.5)


def test_errors_of_the_memory_are_ggext_s() -> None:
    assert issubclass(ContextFullError, GgextError)
