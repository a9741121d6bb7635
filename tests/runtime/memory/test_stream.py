"""What stays when the context is full: stream, recompute and self-extend against a fresh evaluation."""

from __future__ import annotations

import math
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from full_contexts import SMALL, options, perplexity
from paths import SHARED

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.errors import ContextFullError, ModelError
from ggext.rope.encoding import EncodingName
from ggext.rope.scaling import RopeScaling

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.quality.perplexity import nll  # noqa: E402
from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session, SessionOptions  # noqa: E402
from ggext.runtime.memory import POLICIES, WhenFull  # noqa: E402


def baked(folder: Path, encoding: EncodingName | None = None) -> Path:
    out = folder / f"{encoding}.gguf"
    convert(
        ConvertOptions(
            DEMO_MODEL, out, RopeScaling("yarn", factor=8), encoding=encoding
        )
    )
    return out


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
