"""The core of `ggext eval` on models: likelihoods, needles, windows."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ggext.errors import ContextFullError, RopeError, UsageError

np = pytest.importorskip("numpy")


class TestWithModels:
    """What llama.cpp computes, of the embedded model."""

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("llama_cpp")
        pytest.importorskip("jinja2")

    def test_scoring_goes_on_where_it_was_cut(self, demo_gguf: Path) -> None:
        from ggext.quality.perplexity import nll
        from ggext.quality.texts import little_piece
        from ggext.runtime.engine import Model, Session, SessionOptions

        # Other batches round otherwise: keys of 16 bits by 0.0014 without AVX-512.
        exact = SessionOptions(kv_type="f32")
        with Model.open(demo_gguf) as model, Session(model, exact) as session:
            tokens = little_piece(model, 400, 0, 0).tokens
            whole = nll(session, tokens)
            assert len(whole) == 399
            for first in (2, 100, 397, 400):
                assert nll(session, tokens, first) == pytest.approx(
                    whole[first - 1 :], abs=1e-3
                )
            with pytest.raises(UsageError, match="first is 0"):
                nll(session, tokens, 0)
            with pytest.raises(ContextFullError):
                nll(session, tokens * 6)

    def test_scoring_holds_one_batch_whatever_the_length(self, demo_gguf: Path) -> None:
        import tracemalloc

        from ggext.quality.perplexity import nll
        from ggext.quality.texts import little_piece
        from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions

        options = SessionOptions(n_ctx=256, memory=MemoryOptions(when_full="stream"))
        peaks = []
        with Model.open(demo_gguf) as model, Session(model, options) as session:
            for count in (500, 500, 3500):
                tokens = little_piece(model, count, 0, 0).tokens
                tracemalloc.start()
                assert len(nll(session, tokens)) == count - 1
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        grown = peaks[2] - peaks[1]
        all_logits = 3000 * 4 * model.n_vocab
        assert grown < all_logits / 8, peaks

    def test_longppl_is_that_of_the_published_definition(self, demo_gguf: Path) -> None:
        """Step by step as the paper's script does it: each window in a context of its own."""
        from ggext.data import demo_language as language
        from ggext.quality.perplexity import key_tokens, nll, short_nll
        from ggext.runtime.engine import Model, Session, SessionOptions

        def losses(logits: Any, following: tuple[int, ...]) -> Any:
            rows = np.asarray(logits, np.float64)
            log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            return -log_p[np.arange(len(following)), list(following)]

        options = SessionOptions(kv_type="f32")
        with Model.open(demo_gguf) as model, Session(model, options) as session:
            # Answers whose facts stand far back.
            chat = language.training_chat(Random(4), 700, (24, 24))
            tokens = tuple(model.tokenize(chat, add_special=False, parse_special=True))
            short, window, count = 64, 16, 700
            assert len(tokens) == count
            full = session.logits(tokens)
            total, keys = 0.0, 0
            for start in range(0, count - short, window):
                end = min(start + short + window, count)
                following = tokens[start + short : end]
                seen = session.logits(tokens[start:end])
                near = losses(seen[short - 1 : -1], following)
                far = losses(full[start + short - 1 : end - 1], following)
                chosen = np.logical_and(near - far > 2, far < 2)
                total += far[chosen].sum()
                keys += int(chosen.sum())
            long = nll(session, tokens)
            found = key_tokens(short_nll(session, tokens, short, window), long)
        assert keys >= 5
        assert int(found.sum()) == keys
        assert math.exp(long[found].mean()) == pytest.approx(
            math.exp(total / keys), rel=1e-4
        )

    def test_two_contexts_step_side_by_side(self, demo_gguf: Path) -> None:
        from ggext.quality.perplexity import compare, nll
        from ggext.quality.texts import little_piece
        from ggext.runtime.engine import Model, Session, SessionOptions

        with Model.open(demo_gguf) as model:
            tokens = little_piece(model, 300, 0, 0).tokens
            with (
                Session(model) as exact,
                Session(model, SessionOptions(n_batch=50)) as same,
            ):
                found = compare(exact, same, tokens)
                assert len(found.kl) == 299
                assert found.kl.max() < 1e-6
                assert found.same_top.all()
            options = SessionOptions(kv_type="q4_0")
            with Session(model) as exact, Session(model, options) as rounded:
                found = compare(exact, rounded, tokens)
                assert found.kl.mean() > 1e-6
                lost = nll(rounded, tokens) - nll(exact, tokens)
                assert found.delta_p == pytest.approx(
                    np.exp(-nll(rounded, tokens)) - np.exp(-nll(exact, tokens)),
                    abs=1e-5,
                )
                assert np.abs(lost).max() > 0

    def test_a_forced_answer_is_what_greedy_decoding_gives(
        self, demo_gguf: Path
    ) -> None:
        from ggext.quality.needles import forced, sample_maker
        from ggext.quality.prompts import PromptMaker
        from ggext.runtime.engine import Model, Sampling, Session

        with Model.open(demo_gguf) as model, Session(model) as session:
            prompts = PromptMaker(model)
            sample = sample_maker(prompts)("multikey", 512, Random(3))
            assert prompts.count(sample) in (511, 512)
            agreed = 0
            for question in sample.questions:
                prompt, answer = (
                    prompts.prompt(sample.body, question),
                    prompts.answer(question),
                )
                session.evaluate(prompt)
                greedy = list(session.generate(Sampling(temperature=0.0), len(answer)))
                right = forced(session, prompt, answer)
                assert right == (greedy == answer)
                agreed += right
                wrong = [*answer[:-1], answer[0]]
                assert not forced(session, prompt, wrong)
            assert agreed >= 4

    def test_another_scaling_without_baking_is_what_a_bake_gives(
        self, demo_gguf: Path, tmp_path: Path
    ) -> None:
        from ggext.checkpoint.named import DEMO_MODEL
        from ggext.convert import ConvertOptions, convert
        from ggext.gguf.open import read_gguf
        from ggext.quality.perplexity import nll
        from ggext.quality.texts import little_piece
        from ggext.rope.scaling import RopeScaling
        from ggext.runtime.engine import Model, Session, SessionOptions
        from ggext.runtime.scaled import scaling_overrides

        scalings = [
            RopeScaling("none", context=1024),
            RopeScaling("linear", factor=4),
            RopeScaling("ntk", factor=4),
            RopeScaling("yarn", factor=4),
        ]
        # A folded gain is taken back by the kernel's: the same numbers in another order.
        exact = SessionOptions(kv_type="f32")
        found = {}
        for scaling in scalings:
            baked = tmp_path / f"{scaling.method}.gguf"
            convert(ConvertOptions(DEMO_MODEL, baked, scaling))
            with Model.open(baked) as model, Session(model, exact) as session:
                tokens = little_piece(model, 600, 0, 0).tokens
                expected = nll(session, tokens)
            for path in (demo_gguf, tmp_path / "none.gguf"):
                overrides = scaling_overrides(read_gguf(path), scaling)
                with (
                    Model.open(path, overrides=overrides) as model,
                    Session(model, exact) as session,
                ):
                    assert model.n_ctx_train == session.n_ctx == 1024
                    assert nll(session, tokens) == pytest.approx(expected, abs=2e-4)
            found[scaling.method] = expected.mean()
        assert len({round(value, 3) for value in found.values()}) == 4

    def test_a_scaling_in_a_tensor_is_not_switched_off_by_keys(
        self, tmp_path: Path
    ) -> None:
        from ggext.checkpoint.named import DEMO_MODEL
        from ggext.convert import ConvertOptions, convert
        from ggext.gguf.open import read_gguf
        from ggext.rope.scaling import RopeScaling
        from ggext.runtime.scaled import scaling_overrides

        out = tmp_path / "tensor.gguf"
        scaling = RopeScaling("yarn", factor=4)
        convert(ConvertOptions(DEMO_MODEL, out, scaling, encoding="tensor"))
        with pytest.raises(RopeError, match="its own scaling stands in tensors"):
            scaling_overrides(read_gguf(out), RopeScaling("none", context=256))
