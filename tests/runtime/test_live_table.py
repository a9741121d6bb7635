"""A table in a live context against the file that has it baked, which llama.cpp's own keys make."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import write_random

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.convert import ConvertOptions, convert  # noqa: E402
from ggext.errors import RopeError  # noqa: E402
from ggext.rope.scaling import RopeScaling  # noqa: E402
from ggext.runtime.engine import Model, Session, SessionOptions  # noqa: E402
from ggext.runtime.live_table import LiveTable  # noqa: E402

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, 300, 150)]
OPTIONS = {"n_ctx": 256, "threads": 1, "kv_type": "f32"}
YARN = RopeScaling("yarn", factor=4.0)


def logits(path: Path) -> np.ndarray:
    with (
        Model.open(path) as model,
        Session(model, SessionOptions(**OPTIONS)) as session,
    ):
        return session.logits(TOKENS)


# One of each kind: plain in both layouts, layers with a table of their own, layers that slide or
# do not rotate, sections of pairs, a rotated part of each head, a scale of all scores.
@pytest.mark.parametrize(
    "arch",
    [
        "llama",
        "qwen2",
        "gemma3",
        "cohere2",
        "llama4",
        "smollm3",
        "qwen2vl",
        "gptneox",
        "deepseek2",
    ],
)
def test_a_live_table_gives_the_logits_of_the_baked_file(
    arch: str, tmp_path: Path
) -> None:
    source = write_random(
        tmp_path / "model.gguf", arch, extra_keys={f"{arch}.context_length": 64}
    )
    convert(ConvertOptions(source, tmp_path / "yarn.gguf", YARN, encoding="keys"))
    baked, unscaled = logits(tmp_path / "yarn.gguf"), logits(source)
    with Model.open(source) as model:
        live = LiveTable(model.header)
        options = SessionOptions(**OPTIONS, eval_callback=live.callback)
        with Session(model, options) as session:
            before = session.logits(TOKENS)
            live.use(YARN)
            session.clear()
            found = session.logits(TOKENS)
            live.use(None)
            session.clear()
            back = session.logits(TOKENS)
    live.check()
    assert np.abs(unscaled - baked).max() > 0.01
    assert np.abs(found - baked).max() <= 1e-5 * np.abs(baked).max()
    assert (back == before).all()
    # A graph that is watched is computed an operation at a time: the last bits differ.
    assert np.abs(back - unscaled).max() <= 1e-5 * np.abs(unscaled).max()


def test_a_gain_and_bounds_that_no_key_says(tmp_path: Path) -> None:
    """The tensor encoding of the same, to what a 16-bit cache rounds away."""
    source = write_random(
        tmp_path / "model.gguf", "llama", extra_keys={"llama.context_length": 64}
    )
    odd = RopeScaling(
        "yarn",
        factor=5.0,
        context=256,
        attention_factor=1.25,
        beta_fast=4.0,
        beta_slow=0.3,
    )
    convert(ConvertOptions(source, tmp_path / "odd.gguf", odd, encoding="tensor"))
    baked = logits(tmp_path / "odd.gguf")
    with Model.open(source) as model:
        live = LiveTable(model.header)
        live.use(odd)
        options = SessionOptions(**OPTIONS, eval_callback=live.callback)
        with Session(model, options) as session:
            found = session.logits(TOKENS)
    assert np.abs(found - baked).max() < 1e-3 * np.abs(baked).max()


def test_what_the_operation_cannot_say_is_refused(demo_gguf: Path) -> None:
    with Model.open(demo_gguf) as model:
        live = LiveTable(model.header)
        for scaling in (
            RopeScaling("ntk", factor=2),
            RopeScaling("yarn", factor=2, truncate=False),
        ):
            with pytest.raises(
                RopeError, match="a live table is YaRN's with whole bounds"
            ):
                live.use(scaling)


def test_an_interrupt_in_the_callback_is_raised_by_check(
    demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.open(demo_gguf) as model:
        live = LiveTable(model.header)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(live, "_change", interrupted)
        live.use(YARN)
        with Session(
            model, SessionOptions(n_ctx=256, eval_callback=live.callback)
        ) as session:
            session.evaluate([1, 5, 6, 7])
        with pytest.raises(KeyboardInterrupt):
            live.check()
        live.check()
