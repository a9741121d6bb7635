"""Options of the memory: sizes, shares, types of the cache; what is refused first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from full_contexts import options, perplexity
from tiny_gguf import write_random

from ggext.errors import ContextFullError, GgextError, ModelError, UsageError
from ggext.footprint.cache import KV_TYPES
from ggext.footprint.planner import Choices, Memories

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext.runtime import capacity  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions  # noqa: E402


@pytest.mark.parametrize(
    ("memory", "problem"),
    [
        ({"when_full": "forget"}, "when_full is 'forget'"),
        ({"sinks": 0}, "sinks is 0"),
        ({"evict": 0}, "evict is 0"),
        ({"retrieved": 0}, "retrieved is 0"),
        ({"evicted": "lost"}, "evicted is 'lost'"),
        (
            {"when_full": "landmark", "evicted": "dropped"},
            "landmark brings back what left",
        ),
        (
            {"when_full": "stream", "evicted": "kept"},
            "take one of them in place of stream",
        ),
        ({"group": 1}, "group is 1"),
    ],
)
def test_sizes_out_of_range_are_refused(memory: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        MemoryOptions(**memory)


def test_a_context_too_small_for_its_policy_is_refused(model: Model) -> None:
    with pytest.raises(
        UsageError,
        match=r"landmark: 4 sinks, 512 reserved.* need a context of 518 tokens or more",
    ):
        Session(model, options("landmark", 256, retrieved=512))


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
