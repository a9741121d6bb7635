"""Tables that hold for a length of text: LongRoPE by used length, dynamic NTK in steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.data import demo_language as language
from ggext.errors import ModelError, UsageError
from ggext.rope.methods import ntk_base
from ggext.rope.scaling import RopeGeometry, RopeScaling

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.quality.perplexity import nll  # noqa: E402
from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session, SessionOptions  # noqa: E402

GREEDY = Sampling(temperature=0)
SHORT = tuple(1 + 0.02 * i for i in range(16))
LONG = tuple(1.05 + 0.6 * i for i in range(16))
LONGROPE = RopeScaling(
    "longrope", factor=4.0, original_context=256, short_factors=SHORT, long_factors=LONG
)
GEOMETRY = RopeGeometry(
    n_rot=32, head_dim=32, base=1000.0, layout="norm", trained_context=256
)


def baked(path: Path, scaling: RopeScaling) -> Iterator[Model]:
    convert(ConvertOptions(DEMO_MODEL, path, scaling))
    with Model.open(path) as model:
        yield model


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from baked(tmp_path_factory.mktemp("longrope") / "longrope.gguf", LONGROPE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from baked(
        tmp_path_factory.mktemp("plain") / "plain.gguf", RopeScaling("none")
    )


@pytest.fixture(scope="module")
def text(plain: Model) -> list[int]:
    """1,000 tokens."""
    rng = random.Random("regimes")
    document = language.document(rng, language.facts(rng, language.RECALL_FACTS), 998)
    return plain.tokenize(
        f"{language.BOS}{language.USER}{document}",
        add_special=False,
        parse_special=True,
    )


def next_logits(session: Session) -> Any:
    pointer = session.cache.lib.llama_get_logits_ith(session.cache.handle, -1)
    return np.ctypeslib.as_array(pointer, (session.model.n_vocab,)).copy()


def logits_in(model: Model, tokens: list[int], **options: Any) -> Any:
    with Session(model, SessionOptions(kv_type="f32", **options)) as session:
        session.evaluate(tokens)
        return next_logits(session)


def base_of(length: int) -> float:
    return ntk_base(length / 256, GEOMETRY)


def logits_at_base(model: Model, tokens: list[int], base: float) -> Any:
    """In a context whose base is set by hand, through llama.cpp alone."""
    import ctypes

    from ggext.runtime import llama

    lib = llama.lib()
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.rope_freq_base = 1024, 1024, base
    params.type_k = params.type_v = 0
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model.open_handle(), params)
    ids = (ctypes.c_int32 * len(tokens))(*tokens)
    assert lib.llama_decode(context, lib.llama_batch_get_one(ids, len(tokens))) == 0
    rows = np.ctypeslib.as_array(
        lib.llama_get_logits_ith(context, -1), (model.n_vocab,)
    ).copy()
    lib.llama_free(context)
    return rows


def test_longrope_is_short_while_the_text_is(longrope: Model, text: list[int]) -> None:
    short, long = (logits_in(longrope, text[:200], n_ctx=n) for n in (256, 200))
    np.testing.assert_array_equal(short, long)
    whole = logits_in(longrope, text[:200])
    np.testing.assert_allclose(whole, short, atol=1e-4)
    settled = logits_in(longrope, text[:200], memory=MemoryOptions("stream"))
    assert (
        np.abs(settled - short).max() > 0.05
    )  # other policies stay with the long table


def test_longrope_crosses_once_while_an_answer_grows(
    longrope: Model, text: list[int]
) -> None:
    with Session(longrope, SessionOptions(kv_type="f32", n_batch=128)) as session:
        session.evaluate(text[:250])
        spans, tokens = [], []
        for token in session.generate(Sampling(temperature=5, seed=1), 40):
            spans.append(session.cache.regime.span)
            tokens.append(token)
        assert sorted(set(spans)) == [256, 1024]
        assert spans == sorted(spans)
        assert session.tokens == (*text[:250], *tokens)[: session.used]
        session.evaluate(session.tokens)
        with Cache(
            longrope,
            SessionOptions(kv_type="f32", n_batch=128, memory=MemoryOptions("stream")),
        ) as fresh:
            fresh.append(session.tokens[:128])
            fresh.append(session.tokens[128:256])
            fresh.append(session.tokens[256:])
            cells = [cache.handle for cache in (session.cache, fresh)]
            rows = [
                np.ctypeslib.as_array(
                    fresh.lib.llama_get_logits_ith(handle, -1), (longrope.n_vocab,)
                ).copy()
                for handle in cells
            ]
        np.testing.assert_allclose(rows[0], rows[1], atol=2e-3)


def test_longrope_reads_a_long_prompt_with_the_long_table_at_once(
    longrope: Model, text: list[int]
) -> None:
    with Session(longrope, SessionOptions()) as session:
        assert session.evaluate(text[:200]).reused == 0
        assert session.cache.regime.span == 256
        longer = session.evaluate(text[:400])
        assert (longer.reused, longer.evaluated, session.cache.regime.span) == (
            0,
            400,
            1024,
        )
        shorter = session.evaluate(text[:150])
        assert (shorter.reused, session.cache.regime.span) == (
            149,
            1024,
        )  # no need to read it again
        other = session.evaluate(text[500:600])
        assert (other.reused, session.cache.regime.span) == (0, 256)
        assert session.available == 1024 - 100


def test_a_cancelled_crossing_keeps_a_true_account(
    longrope: Model, text: list[int]
) -> None:
    with Session(longrope, SessionOptions()) as session:
        session.evaluate(text[:250])
        session.cancel()
        assert not session.cache.append(text[250:300])
        session.resume()
        assert session.tokens == tuple(text[: session.used])
        assert session.evaluate(text[:300]).reused <= 250


@pytest.mark.parametrize("mode", ["rotate", "replay"])
def test_dynamic_ntk_takes_the_base_of_the_length(
    plain: Model, text: list[int], mode: Any
) -> None:
    with Session(plain, SessionOptions(n_ctx=1000, dynamic_ntk=mode)) as session:
        assert session.notices == ()
        assert [regime.span for regime in session.cache.regimes] == [256, 512, 1000]
        bases = [regime.freq_base for regime in session.cache.regimes]
        assert bases == pytest.approx([1000.0, base_of(512), base_of(1024)], rel=1e-6)
    for length in (200, 400, 900):
        made = logits_in(plain, text[:length], n_ctx=1000, dynamic_ntk=mode)
        base = next(
            b for span, b in zip((256, 512, 1024), bases, strict=True) if length <= span
        )
        np.testing.assert_allclose(
            made, logits_at_base(plain, text[:length], base), atol=1e-3
        )


def test_replay_is_a_fresh_evaluation_and_rotation_is_one_in_layer_0(
    plain: Model, text: list[int]
) -> None:
    kept: dict[str, Any] = {}
    for mode in ("replay", "rotate"):
        options = SessionOptions(n_ctx=1000, kv_type="f32", dynamic_ntk=mode)  # type: ignore[arg-type]
        with Session(plain, options) as session:
            session.evaluate(text[:250])
            second = session.evaluate(text[:300])
            assert session.cache.regime.span == 512
            assert second.reused == (250 if mode == "rotate" else 0)
            kept[mode] = next_logits(session)
            if mode == "rotate":
                keys = session.cache.take(0, 250)
    fresh = logits_at_base(plain, text[:300], base_of(512))
    np.testing.assert_allclose(kept["replay"], fresh, atol=1e-3)
    assert 1e-2 < np.abs(kept["rotate"] - fresh).max() < 3
    with Session(
        plain, SessionOptions(n_ctx=1000, kv_type="f32", dynamic_ntk="rotate")
    ) as session:
        session.evaluate(text[:300])
        right = session.cache.take(0, 250)
    errors = [
        np.abs(a.view("<f4") - b.view("<f4")).max()
        for a, b in zip(keys.keys, right.keys, strict=True)
    ]
    assert errors[0] < 1e-4
    assert errors[1] > 1e-2


def test_dynamic_ntk_keeps_an_answer_going_where_the_plain_file_fails(
    plain: Model, text: list[int]
) -> None:
    with Session(plain, SessionOptions(n_ctx=1000)) as session:
        plainly = nll(session, text)[600:].mean()
    for mode in ("rotate", "replay"):
        with Session(plain, SessionOptions(n_ctx=1000, dynamic_ntk=mode)) as session:  # type: ignore[arg-type]
            assert nll(session, text)[600:].mean() < plainly - 0.2


def test_dynamic_ntk_is_refused_where_it_cannot_be(longrope: Model) -> None:
    with pytest.raises(ModelError, match="is scaled already"):
        Session(longrope, SessionOptions(dynamic_ntk="replay"))
    for options, words in (
        ({"dynamic_ntk": "often"}, "rotate, replay"),
        (
            {"dynamic_ntk": "rotate", "memory": MemoryOptions("stream")},
            "cannot go with when_full='stream'",
        ),
        ({"dynamic_ntk": "rotate", "kv_type": "q8_0"}, "take f16, or replay"),
    ):
        with pytest.raises(UsageError, match=words):
            SessionOptions(**options)
