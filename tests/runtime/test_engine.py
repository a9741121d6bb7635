"""The engine on a real small model: what is evaluated, what is kept, what stops it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_gguf
from paths import ROOT, SHARED

from ggext.errors import ContextFullError, GgextError, GgufError, ModelError, UsageError
from ggext.footprint.planner import Choices, Memories
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field, tensor_nbytes
from ggext.gguf.writer import TensorToWrite, write_gguf

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime import capacity, context, forks, llama, quantizer  # noqa: E402
from ggext.runtime.cache import Cache  # noqa: E402
from ggext.runtime.engine import (  # noqa: E402
    CancelledError,
    Model,
    Sampling,
    Session,
    SessionOptions,
)

DOCUMENT = ROOT / "ggext/data/document.txt"
GREEDY = Sampling(temperature=0)
CHECKPOINT = SHARED / "models/stories260K"


@pytest.fixture(scope="module")
def model(small_gguf: Path) -> Iterator[Model]:
    with Model.open(small_gguf) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with Session(model) as session:
        yield session


@pytest.fixture(scope="module")
def stories(stories_gguf: Path) -> Iterator[Model]:
    """A model whose text is published and whose vocabulary is SentencePiece's."""
    with Model.open(stories_gguf) as model:
        yield model


@pytest.fixture(scope="module")
def story(model: Model) -> list[int]:
    """501 tokens of the embedded document, BOS first."""
    return [model.bos, *model.tokenize(DOCUMENT.read_text())][:501]


def last_logits(session: Session) -> Any:
    pointer = session.cache.lib.llama_get_logits_ith(session.cache.handle, -1)
    return np.ctypeslib.as_array(pointer, (session.model.n_vocab,)).copy()


def slow(session: Session, seconds: float) -> None:
    """Every batch takes at least `seconds`, as with a large model."""
    append = session.cache.append

    def slowed(tokens: Sequence[int], every_logit: bool = False) -> bool:
        time.sleep(seconds)
        return append(tokens, every_logit)

    session.cache.append = slowed  # type: ignore[method-assign]


@pytest.mark.shared("models/stories260K")
def test_greedy_text_is_the_published_one(stories: Model) -> None:
    with Session(stories) as session:
        session.evaluate([stories.bos])
        generation = session.generate(GREEDY, max_tokens=256)
        text = b"".join(stories.token_to_piece(token) for token in generation).decode()
    assert text.strip() == (CHECKPOINT / "greedy.txt").read_text().strip()
    assert generation.finish == "length"


def test_an_answer_that_reaches_the_end_of_the_context_says_so(
    session: Session,
) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    assert len(list(generation)) == 512
    assert (generation.finish, session.used, session.available) == ("context", 512, 0)


def test_generation_ends_at_the_end_token(session: Session) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    tokens = iter(range(1, 9))
    generation._is_last = lambda _token: next(tokens) == 5
    assert (len(list(generation)), generation.finish) == (4, "eog")


@pytest.mark.parametrize(
    ("second", "reused", "evaluated"),
    [
        pytest.param([1, 2, 3, 4, 5], 3, 2, id="longer"),
        pytest.param([1, 2, 9], 2, 1, id="last differs"),
        pytest.param([9, 2, 3], 0, 3, id="first differs"),
        pytest.param([1, 2, 3], 3, 0, id="same"),
        pytest.param([1, 2], 1, 1, id="shorter: its last token again, for the logits"),
    ],
)
def test_only_the_changed_suffix_is_evaluated(
    session: Session, model: Model, second: list[int], reused: int, evaluated: int
) -> None:
    session.evaluate([1, 2, 3])
    prefill = session.evaluate(second)
    assert (prefill.reused, prefill.evaluated) == (reused, evaluated)
    assert session.tokens == tuple(second)
    with Session(model) as fresh:
        fresh.evaluate(second)
        np.testing.assert_allclose(last_logits(session), last_logits(fresh), atol=2e-3)


@pytest.mark.parametrize("cancelled_at", [None, 128])
def test_what_is_read_ahead_gives_the_logits_of_reading_at_once(
    model: Model, story: list[int], cancelled_at: int | None
) -> None:
    """Bit for bit: only whole batches are read ahead, also where that is stopped on the way."""
    with Session(model, SessionOptions(n_batch=64)) as session:
        session.evaluate(story[:50])
        session.evaluate(story)
        expected = last_logits(session)
    with Session(model, SessionOptions(n_batch=64)) as session:
        session.evaluate(story[:50])

        def progress(done: int, _total: int) -> None:
            if done == cancelled_at:
                session.cancel()

        ahead = session.read_ahead(story[:-7], progress)
        assert (ahead.reused, ahead.evaluated) == (50, cancelled_at or 384)
        assert session.read_ahead(story[:60]).evaluated == 0
        prefill = session.evaluate(story)
        assert prefill.reused == 50 + ahead.evaluated
        assert np.array_equal(last_logits(session), expected)


def test_an_answer_is_reused_by_the_next_turn(session: Session) -> None:
    session.evaluate([1, 2, 3])
    answer = list(session.generate(GREEDY, 10))
    prefill = session.evaluate([1, 2, 3, *answer, 7])
    assert (prefill.reused, prefill.evaluated) == (
        12,
        2,
    )  # the last one was never evaluated


def test_progress_counts_batches_from_zero(model: Model, story: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    with Session(model, SessionOptions(n_batch=200)) as session:
        session.evaluate(story[:100])
        session.evaluate(story, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 401), (200, 401), (400, 401), (401, 401)]


def test_batches_do_not_change_the_logits(session: Session, story: list[int]) -> None:
    whole = session.logits(story)
    parts = session.logits(story, n_batch=7)
    assert whole.shape == (501, session.model.n_vocab)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, parts, atol=2e-3)


def test_logits_do_not_depend_on_the_cache(session: Session, story: list[int]) -> None:
    before = session.logits(story[:50])
    session.evaluate(story[100:])
    np.testing.assert_array_equal(session.logits(story[:50]), before)


def test_logits_are_those_that_sampling_sees(
    session: Session, story: list[int]
) -> None:
    rows = session.logits(story[:50])
    session.evaluate(story[:50])
    assert next(session.generate(GREEDY)) == int(rows[-1].argmax())


def test_a_prompt_that_does_not_fit_changes_nothing(session: Session) -> None:
    session.evaluate([1, 2, 3])
    with pytest.raises(ContextFullError) as full:
        session.evaluate([1, 2, *[4] * 511])
    error = full.value
    assert (error.requested, error.used, error.available) == (511, 2, 510)
    assert session.tokens == (1, 2, 3)
    assert len(list(session.generate(GREEDY, 2))) == 2


def test_a_prompt_that_just_fits_gives_one_token(
    session: Session, story: list[int]
) -> None:
    session.evaluate([*story, *story[:11]])
    generation = session.generate(GREEDY)
    assert (len(list(generation)), generation.finish) == (1, "context")


def test_the_context_is_the_one_asked_for_not_llama_cpps_rounded_one(
    model: Model,
) -> None:
    with Session(model, SessionOptions(n_ctx=100)) as session:
        assert session.n_ctx == 100
        with pytest.raises(ContextFullError):
            session.evaluate([1] * 101)


def test_cancelling_a_prefill_keeps_the_session_right(
    model: Model, story: list[int]
) -> None:
    with Session(model, SessionOptions(n_batch=50)) as session:
        prefill = session.evaluate(
            story, lambda done, _total: session.cancel() if done >= 100 else None
        )
        assert prefill.cancelled
        assert 0 < session.used < len(story)
        assert session.tokens == tuple(story[: session.used])
        with pytest.raises(ModelError, match="nothing to continue"):
            session.generate(GREEDY)
        again = session.evaluate(story)
        assert (again.reused, again.cancelled) == (prefill.evaluated, False)
        with Session(model, SessionOptions(n_batch=50)) as fresh:
            fresh.evaluate(story)
            np.testing.assert_allclose(
                last_logits(session), last_logits(fresh), atol=2e-3
            )


def test_cancelling_stops_inside_a_batch(
    model: Model, story: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(model, SessionOptions(n_batch=512)) as session:
        session.evaluate(story[:10])

        def cancel_now(done: int, _total: int) -> None:
            if done == 0:
                session.cancel()
                monkeypatch.setattr(Cache, "cancelled", False)

        prefill = session.evaluate(story, cancel_now)
        assert (prefill.cancelled, prefill.evaluated) == (True, 0)
        assert session.tokens == tuple(story[:10])


def test_cancelling_ends_an_answer_and_not_the_next(session: Session) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    tokens = [next(generation), next(generation)]
    session.cancel()
    assert list(generation) == []
    assert generation.finish == "cancelled"
    session.evaluate([1])
    assert list(session.generate(GREEDY, 2)) == tokens


def test_cancelling_logits_raises(session: Session, story: list[int]) -> None:
    slow(session, 0.2)
    timer = threading.Timer(0.05, session.cancel)
    timer.start()
    with pytest.raises(CancelledError, match="0 of 501"):
        session.logits(story)
    timer.join()


def test_a_failed_progress_callback_leaves_the_session_right(
    model: Model, story: list[int]
) -> None:
    def fail(done: int, _total: int) -> None:
        if done:
            raise ZeroDivisionError

    with Session(model, SessionOptions(n_batch=50)) as session:
        with pytest.raises(ZeroDivisionError):
            session.evaluate(story, fail)
        assert session.tokens == tuple(story[:50])
        assert session.evaluate(story).reused == 50


def test_two_threads_cannot_share_a_session(session: Session, story: list[int]) -> None:
    slow(session, 0.3)
    thread = threading.Thread(target=session.evaluate, args=(story[:10],))
    thread.start()
    time.sleep(0.1)
    with pytest.raises(ModelError, match="another thread"):
        session.evaluate([1])
    thread.join()
    assert session.used == 10


def test_a_generation_ends_when_its_session_moves_on(session: Session) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    next(generation)
    session.evaluate([1, 2])
    with pytest.raises(ModelError, match="something else"):
        next(generation)


def sampled(session: Session, **options: float) -> list[int]:
    session.evaluate([1])
    return list(session.generate(Sampling(**options), 60))  # type: ignore[arg-type]


def test_a_seed_repeats_the_answer(session: Session) -> None:
    assert sampled(session, seed=1) == sampled(session, seed=1)
    assert sampled(session, seed=1) != sampled(session, seed=2)


def test_without_a_seed_answers_differ(session: Session) -> None:
    assert len({tuple(sampled(session, temperature=2)) for _ in range(3)}) > 1


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_each_sampler_alone_can_make_it_greedy(
    session: Session, options: dict[str, float]
) -> None:
    assert sampled(session, temperature=1.5, **options) == sampled(
        session, temperature=0
    )


def test_the_repeat_penalty_sees_the_prompt_and_the_answer(session: Session) -> None:
    session.evaluate([1])
    free = list(session.generate(GREEDY, 40))
    assert len(set(free)) < 40
    session.evaluate([1, free[0], 1])
    penalized = list(session.generate(Sampling(temperature=0, repeat_penalty=100), 40))
    assert len(set(penalized)) == 40
    assert free[0] not in penalized


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repeat_penalty": 0},
        {"seed": 2**32 - 1},
        {"seed": -1},
    ],
)
def test_sampling_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", "-")):
        Sampling(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [[], [747], [-1], [1, 2**40]])
def test_tokens_that_are_none_are_refused(session: Session, tokens: list[int]) -> None:
    with pytest.raises(ModelError, match="token"):
        session.evaluate(tokens)


def test_closed_things_say_so(small_gguf: Path) -> None:
    model = Model.open(small_gguf)
    session = Session(model)
    session.close()
    session.close()
    with pytest.raises(ModelError, match="closed"):
        session.evaluate([1])
    other = Session(model)
    model.close()
    model.close()
    for use in (
        lambda: other.evaluate([1]),
        lambda: model.tokenize("a"),
        lambda: Session(model),
    ):
        with pytest.raises(ModelError, match="closed"):
            use()


@pytest.mark.shared("models/stories260K")
def test_the_vocabulary_of_sentencepiece(stories: Model) -> None:
    assert (stories.bos, stories.eos, stories.adds_bos) == (1, 2, True)
    assert stories.tokenize("Once")[0] == 1
    assert stories.tokenize("Once", add_special=False)[0] != 1
    assert 2 in stories.tokenize("</s>", parse_special=True)
    assert 2 not in stories.tokenize("</s>")
    assert stories.is_eog(2)
    assert stories.is_control(1)
    assert stories.token_to_piece(1) == b""
    assert stories.token_text(1) == "<s>"
    text = "Zoë ☃\0🦙"
    tokens = stories.tokenize(text, add_special=False)
    assert b"".join(map(stories.token_to_piece, tokens)).decode() == " " + text


def test_the_vocabulary(model: Model) -> None:
    assert (model.bos, model.eos, model.adds_bos) == (742, 746, False)
    assert model.eos in model.tokenize("<|end|>", parse_special=True)
    assert model.eos not in model.tokenize("<|end|>")
    assert (model.is_eog(model.eos), model.is_control(model.bos)) == (True, True)
    assert model.token_to_piece(model.eos) == b""
    assert model.token_text(model.eos) == "<|end|>"
    text = "Zoë ☃\0🦙"
    assert b"".join(map(model.token_to_piece, model.tokenize(text))).decode() == text


def test_a_model_says_what_it_is(model: Model) -> None:
    assert (model.architecture, model.n_ctx_train, model.n_vocab) == ("llama", 512, 747)
    assert model.n_params == 649_472
    assert "llama" in model.description


def test_nothing_of_llama_cpp_reaches_the_terminal(
    small_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Model.open(small_gguf) as model, Session(model) as session:
        session.evaluate([1])
    assert capfd.readouterr() == ("", "")


def test_a_load_can_be_cancelled(small_gguf: Path) -> None:
    with pytest.raises(CancelledError):
        Model.open(small_gguf, progress=lambda _: False)


def test_an_error_in_the_load_callback_comes_through(small_gguf: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Model.open(small_gguf, progress=lambda _: bool(1 / 0))


def test_a_truncated_file_never_reaches_llama_cpp(
    small_gguf: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(small_gguf.read_bytes()[:-1000])
    with pytest.raises(GgufError, match="truncated"):
        Model.open(cut)


def test_a_refusal_quotes_llama_cpps_reason(small_gguf: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(
        small_gguf.read_bytes().replace(
            b"blk.2.attn_norm.weight", b"blk.2.attn_nork.weight"
        )
    )
    with pytest.raises(
        ModelError, match=r"llama\.cpp says: .*attn_norm\.weight' not found"
    ):
        Model.open(other)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(GgextError, match=str(path)):
            Model.open(path)


def test_another_version_of_the_binding_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llama_cpp.__version__", "0.3.35")
    monkeypatch.setattr(llama, "_module", None)
    with pytest.raises(
        ModelError, match=r'0\.3\.35.*pip install "llama-cpp-python==0\.3\.36"'
    ):
        llama.lib()


def test_a_default_context_is_capped_to_the_memory_and_says_so(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = capacity.room(model, Choices(batch=64))
    assert room is not None
    smallest = replace(
        room.planner.context(256, Memories(room.free)), flash_attention=True
    )
    ram, _ = room.planner.shares(smallest)
    assert (
        ram.cache == 256 * 3 * 2 * 32 * 2 * 2
    )  # layers, KV heads, head dim, K and V, f16
    monkeypatch.setattr(capacity, "free_memory", lambda: ram.total * 100 // 94)
    with Session(model, SessionOptions(n_batch=64)) as session:
        assert session.n_ctx == 256
        assert "the context is 256 tokens" in session.notices[0]
    with pytest.raises(ModelError, match="ask for a smaller context"):
        Session(model, SessionOptions(n_ctx=512))
    monkeypatch.setattr(capacity, "free_memory", lambda: 1000)
    with pytest.raises(ModelError, match="the free memory holds 0"):
        Session(model, SessionOptions(n_batch=64))


@pytest.mark.parametrize("tokens", [256, 512])
def test_a_context_can_leave_half_of_the_memory_to_others(
    model: Model, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    room = capacity.room(model, Choices(batch=64, flash_attention=True))
    assert room is not None
    ram, _ = room.planner.shares(room.planner.context(tokens, Memories(None)))
    free = ram.total * 2 * 100 // 95 - ram.weights + 8
    monkeypatch.setattr(capacity, "free_memory", lambda: free)
    with Session(model, SessionOptions(n_batch=64, leaves_memory=True)) as session:
        assert session.n_ctx == tokens
        assert ["context='auto'" in notice for notice in session.notices] == (
            [True] if tokens < 512 else []
        )
    for options in (
        SessionOptions(n_batch=64),
        SessionOptions(512, n_batch=64, leaves_memory=True),
    ):
        with Session(model, options) as session:
            assert (session.n_ctx, session.notices) == (512, ())


def test_trained_means_before_the_extension(tmp_path: Path) -> None:
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    convert(
        ConvertOptions(DEMO_MODEL, tmp_path / "x.gguf", RopeScaling("yarn", factor=4))
    )
    with Model.open(tmp_path / "x.gguf") as model, Session(model) as session:
        assert (session.trained, session.n_ctx, model.n_ctx_train) == (256, 1024, 1024)


def test_a_context_beyond_the_trained_one_is_allowed_and_noted(model: Model) -> None:
    with Session(model, SessionOptions(n_ctx=1024)) as session:
        assert "longer than the 512" in session.notices[0]
        assert session.evaluate([1] * 600).evaluated == 600


def test_rope_is_left_as_the_file_says(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    init = llama.lib().llama_init_from_model

    def watched(handle: Any, params: Any) -> Any:
        seen.append(params)
        return init(handle, params)

    monkeypatch.setattr(llama.lib(), "llama_init_from_model", watched)
    with Session(model):
        pass
    given, default = seen[0], llama.lib().llama_context_default_params()
    names = [n for n, *_ in default._fields_ if n.startswith(("rope_", "yarn_"))]
    assert len(names) == 8
    assert all(getattr(given, n) == getattr(default, n) for n in names)


def test_weights_that_were_laid_out_anew_are_counted_once(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q4_0.gguf"
    quantizer.quantize(small_gguf, path, "q4_0")
    with (
        Model.open(small_gguf, gpu_layers=0) as mapped,
        Model.open(path, gpu_layers=0) as model,
    ):
        assert mapped.copied == 0
        if not model.copied:
            pytest.skip("llama.cpp runs q4_0 as it is on this CPU")
        room = capacity.room(model, Choices())
        assert room is not None
        needed = (
            room.planner.shares(room.planner.context(512, Memories(0)))[0].total
            * 100
            // 95
            + 1
        )
        for free, holds in (
            (needed - model.copied, True),
            (needed - model.copied - 4096, False),
        ):
            monkeypatch.setattr(capacity, "free_memory", lambda free=free: free)
            left = capacity.room(model, Choices())
            assert left is not None
            assert left.holds(512) is holds


def test_a_session_of_a_parent_process_is_refused(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.evaluate([1])
    generation = session.generate(GREEDY)
    monkeypatch.setattr(forks, "count", forks.count + 1)
    for use in (lambda: session.evaluate([1, 2]), lambda: next(generation)):
        with pytest.raises(ModelError, match="another process's"):
            use()


@pytest.mark.parametrize(
    ("layers", "kv_type", "refused"),
    [(24, "q8_0", True), (12, "q4_0", True), (24, "f16", False), (8, "q8_0", False)],
)
def test_a_graph_that_llama_cpp_has_no_room_for_is_refused(
    layers: int, kv_type: str, refused: bool
) -> None:
    """As seen on headers of Granite 3.0 1B A400M with so many layers: 12 end the process, 8 run."""
    keys = {"block_count": layers, "expert_used_count": 8}
    parts = SimpleNamespace(tensors=range(2 + 10 * layers), arch_keys=lambda: keys)
    model: Any = SimpleNamespace(
        path="m.gguf", architecture="granitemoe", header=parts, all_parts=parts
    )
    with pytest.raises(ModelError, match="take f16") if refused else nullcontext():
        context._check_graph(model, kv_type)


def test_quantizing_by_name(small_gguf: Path, story: list[int], tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    quantizer.quantize(small_gguf, out, "q8_0")
    assert out.stat().st_size < small_gguf.stat().st_size
    answers = []
    for path in (small_gguf, out):
        with Model.open(path) as model, Session(model) as session:
            session.evaluate(story)
            answers.append(list(session.generate(GREEDY, 8)))
    assert answers[0] == answers[1]
    assert list(tmp_path.glob(".*")) == []


def test_an_unknown_quantization_names_the_known(
    small_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"Q9_X.*Q4_K_M"):
        quantizer.quantize(small_gguf, tmp_path / "q.gguf", "Q9_X")


def test_a_refused_quantization_leaves_the_old_file(
    small_gguf: Path, tmp_path: Path
) -> None:
    small, out = tmp_path / "small.gguf", tmp_path / "q.gguf"
    quantizer.quantize(small_gguf, small, "Q8_0")
    out.write_text("old")
    with pytest.raises(
        ModelError, match=r"llama\.cpp says: .*requantizing from type q8_0"
    ):
        quantizer.quantize(small, out, "Q4_0")
    assert {path.name for path in tmp_path.iterdir()} == {
        "home",
        "small.gguf",
        "q.gguf",
    }
    assert out.read_text() == "old"


def test_large_models_read_in_smaller_batches(model: Model) -> None:
    """So that a cancel is seen soon: 128 tokens through a matrix of 60 million take a second on a
    slow core."""
    assert [capacity.batch_for(model, threads) for threads in (1, 4)] == [64, 128]
    shapes = {"blk.0.ffn_up.weight": (4096, 14336), "output.weight": (4096, 128256)}
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
    large: Any = SimpleNamespace(
        offloads=False, all_parts=SimpleNamespace(tensors=tensors)
    )
    assert [capacity.batch_for(large, threads) for threads in (2, 16)] == [64, 128]
    large.offloads = True
    assert capacity.batch_for(large, 2) == 512


def test_batches_are_bounded(model: Model, story: list[int]) -> None:
    sizes: list[int] = []
    with Session(model, SessionOptions(n_batch=64)) as session:
        append = session.cache.append

        def watched(tokens: Sequence[int], every_logit: bool = False) -> bool:
            sizes.append(len(tokens))
            return append(tokens, every_logit)

        session.cache.append = watched  # type: ignore[method-assign]
        session.evaluate(story)
    assert sizes == [64] * 7 + [53]


def _zeros(size: int) -> list[bytes]:
    return [bytes(size)]


def damaged(
    source: Path, out: Path, fields: dict[str, Any], types: dict[str, int]
) -> Path:
    """A copy of a GGUF file with other values (in place of the old) and tensor types."""
    header = read_gguf(source)
    changed = {}
    for key, value in fields.items():
        old = header.fields.get(key)
        changed[key] = (
            Field.of(value) if old is None else Field(old.type, value, old.item_type)
        )
    tensors = []
    for name, info in header.tensors.items():
        kind = types.get(name, info.type)
        size = tensor_nbytes(name, info.shape, kind)
        tensors.append(
            TensorToWrite(name, info.shape, kind, size, partial(_zeros, size))
        )
    write_gguf(out, header.fields | changed, tensors)
    return out


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.mark.parametrize(
    ("fields", "types", "problem"),
    [
        pytest.param({"llama.block_count": 0}, {}, "block_count is 0", id="no layers"),
        pytest.param(
            {"llama.block_count": 513}, {}, "block_count is 513", id="many layers"
        ),
        pytest.param(
            {"llama.attention.layer_norm_rms_epsilon": -1.0},
            {},
            "epsilon is -1",
            id="epsilon",
        ),
        pytest.param(
            {"llama.attention.layer_norm_rms_epsilon": math.nan},
            {},
            "epsilon is nan",
            id="nan",
        ),
        pytest.param(
            {"llama.rope.scaling.type": "dynamic"},
            {},
            "scaling.type is 'dynamic'",
            id="scaling",
        ),
        pytest.param({"llama.expert_count": 8}, {}, "0 of 8 experts", id="experts"),
        pytest.param(
            {"llama.expert_used_count": 8}, {}, "8 of 0 experts", id="experts used"
        ),
        pytest.param(
            {"tokenizer.ggml.tokens": ["a"] * 512},
            {},
            "511 tokens occur twice",
            id="same tokens",
        ),
        pytest.param(
            {
                "tokenizer.ggml.model": "bert",
                "tokenizer.ggml.tokens": BYTES
                + [f"word {i}" for i in range(747 - 256)],
                "tokenizer.ggml.token_type": [6] * 256 + [1] * (747 - 256),
            },
            {},
            "has byte tokens",
            id="bert with bytes",
        ),
        pytest.param({}, {"output_norm.weight": 1}, "not of type F32", id="f16 norm"),
        pytest.param({}, {"blk.0.ffn_up.weight": 28}, "of type F64", id="f64 weight"),
        pytest.param({}, {"token_embd.weight": 24}, "of type I8", id="i8 embedding"),
    ],
)
def test_a_file_that_would_abort_llama_cpp_is_refused(
    small_gguf: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    types: dict[str, int],
    problem: str,
) -> None:
    bad = damaged(small_gguf, tmp_path / "bad.gguf", fields, types)
    with pytest.raises(GgufError, match=f"{problem}.*would abort"):
        Model.open(bad)


@pytest.mark.parametrize(
    "arch",
    ["dots1", "ernie4_5-moe", "glm4moe", "granitemoe", "llama4", "mistral3", "olmoe"],
)
def test_families_with_experts_and_chunks_answer(tmp_path: Path, arch: str) -> None:
    path = tiny_gguf.write_random(tmp_path / "m.gguf", arch)
    with (
        Model.open(path) as model,
        Session(model, SessionOptions(n_ctx=256)) as session,
    ):
        session.evaluate([*range(5, 60)])
        answers = [[*session.generate(Sampling(temperature=0), 8)]]
        session.evaluate([*range(5, 60)])
        answers.append([*session.generate(Sampling(temperature=0), 8)])
    assert len(answers[0]) == 8
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("arch", "changed", "problem"),
    [
        (
            "llama4",
            {"block_count": 3},
            "block_count is 3, and the architecture llama4 has 4 layers or more",
        ),
        ("llama4", {"attention.sliding_window": 0}, "attention.sliding_window is 0"),
        (
            "llama4",
            {"attention.sliding_window_pattern": 1},
            "attention.sliding_window is 8192, and no layer has a",
        ),
        (
            "gemma3",
            {"attention.sliding_window_pattern": 1},
            "attention.sliding_window is 64, and no layer has a",
        ),
        (
            "gpt-oss",
            {"attention.sliding_window_pattern": [0, 0]},
            "attention.sliding_window is 128, and no layer has",
        ),
    ],
)
def test_windows_that_would_abort_llama_cpp_are_refused(
    tmp_path: Path, arch: str, changed: dict[str, Any], problem: str
) -> None:
    keys = {f"{arch}.{key}": value for key, value in changed.items()}
    path = tiny_gguf.write_random(tmp_path / "m.gguf", arch, extra_keys=keys)
    with pytest.raises(GgufError, match=f"{problem}.*would abort"):
        Model.open(path)


def test_the_damage_itself_is_what_is_refused(small_gguf: Path, tmp_path: Path) -> None:
    same = damaged(small_gguf, tmp_path / "same.gguf", {}, {})
    with Model.open(same) as model, Session(model) as session:
        assert session.evaluate([1]).evaluated == 1
