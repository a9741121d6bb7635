"""The size of a context and of its batches: asked for, capped by the memory, refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_texts import GREEDY

from ggext.errors import ModelError
from ggext.footprint.planner import Choices, Memories

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime import capacity, context, forks, quantizer  # noqa: E402
from ggext.runtime.engine import Model, Session, SessionOptions  # noqa: E402


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
