"""MiniMax M3, which attends to blocks of tokens: the plan against what llama.cpp allocates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from planned import FREE
from sized_gguf import SHAPES, Shape, logged_sizes, opened, write_sized

from ggext.errors import GgufError, UsageError
from ggext.footprint.architecture import architecture
from ggext.footprint.cache import KV_TYPES
from ggext.footprint.graph import bytes_at
from ggext.footprint.planner import Choices
from ggext.gguf.open import read_gguf
from ggext.plan import PlanOptions, plan

pytestmark = pytest.mark.usefixtures("two_cores")

SHAPE = SHAPES["minimax-m3-8-layers"]
#: Caches of keys and of an indexer's, each logged to a hundredth of a MiB, in halves.
LOGGED = 4 * 0.005 * 2**20
#: Tokens, batch, type of the cache.
CONTEXTS = [
    (8192, 128, "f16"),
    (500, 512, "f32"),
    (65536, 512, "bf16"),
    (131072, 512, "q4_0"),
    (4096, 2048, "q8_0"),
    (4096, 3, "f16"),
    (1000, 1, "f16"),
    (1000, 1, "f32"),
    (300, 1, "q8_0"),
]


def changed(**keys: int) -> Shape:
    added = {f"attention.indexer.{key}": value for key, value in keys.items()}
    return replace(SHAPE, keys=SHAPE.keys | added)


@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        replace(
            SHAPE,
            layers=4,
            dense_lead=0,
            keys=SHAPE.keys | {"leading_dense_block_count": 0},
        ),
        changed(block_size=32, key_length=64),
        changed(block_size=512, top_k=1),
        replace(changed(head_count=1), kv_heads=1),
    ],
    ids=["published", "all-choose", "small-blocks", "large-blocks", "one-head"],
)
def test_the_plan_is_what_llama_cpp_allocates(shape: Shape, tmp_path: Path) -> None:
    """llama.cpp's buffer for computing is at first that of an empty context; the plan's is that
    of a full one, so never less."""
    pytest.importorskip("llama_cpp")
    path = write_sized(tmp_path / "model.gguf", shape)
    arch = architecture(read_gguf(path))
    with opened(path) as make:
        for tokens, batch, kv_type in CONTEXTS:
            found = plan(path, PlanOptions(tokens, 0, Choices(kv_type, batch)), FREE)
            assert found.context.flash_attention
            wanted = make(
                n_ctx=tokens,
                n_batch=batch,
                n_ubatch=batch,
                flash_attn_type=1,
                type_k=KV_TYPES[kv_type],
                type_v=KV_TYPES[kv_type],
            )
            assert found.ram.weights == wanted.weights
            assert abs(found.ram.cache - wanted.cache) <= LOGGED
            assert abs(found.ram.output - wanted.output) <= 0.01 * 2**20
            empty = bytes_at(arch, found.context, 0)
            within = max(0.02 * wanted.compute, 0.01 * 2**20)
            assert abs(empty - wanted.compute) <= within, (tokens, batch, kv_type)
            assert found.ram.compute >= empty


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 4096, "n_batch": 64},
        {"n_ctx": 1024, "n_batch": 256, "kv_type": "f32"},
        {"n_ctx": 2048, "n_batch": 1},
    ],
)
def test_the_plan_is_what_a_full_context_takes(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """The buffer grows with the text; made again at its end, it is what was planned."""
    pytest.importorskip("llama_cpp")
    from ggext.runtime import llama
    from ggext.runtime.engine import Model, Session, SessionOptions

    n_ctx = options["n_ctx"]
    key = {"minimax-m3.context_length": n_ctx}
    path = tiny_gguf.write_random(tmp_path / "m.gguf", "minimax-m3", extra_keys=key)
    choices = Choices(options.get("kv_type", "f16"), options["n_batch"])
    found = plan(path, PlanOptions(n_ctx, 0, choices), FREE)
    assert found.measured
    ids = [3 + 7 * i % 250 for i in range(n_ctx)]
    with (
        Model.open(path, gpu_layers=0) as model,
        llama.listening(llama.Log(None)),
        Session(model, SessionOptions(**options)) as session,
    ):
        first = logged_sizes(model.size, llama.current_log())
        session.evaluate(ids[:-1])
        llama.current_log().clear()
        # without layers it changes nothing but that the buffers are made again
        handle = session.cache.handle
        assert not llama.lib().llama_set_adapter_cvec(handle, None, 0, 0, 0, 0)
        session.evaluate(ids)
        last = logged_sizes(model.size, llama.current_log())
    assert found.ram.weights == first.weights
    assert abs(found.ram.cache - first.cache) <= LOGGED
    assert abs(found.ram.compute - last.compute) <= max(
        0.02 * last.compute, 0.01 * 2**20
    )
    assert found.ram.compute >= first.compute - 0.01 * 2**20


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("head_count", 3, "not that of the heads of keys"),
        ("block_size", 24, "not a power of two"),
        ("block_size", 0, "not a number of 1"),
        ("top_k", "x", "not a number of 1"),
        ("key_length", 0, "not a number of 1"),
    ],
)
def test_the_numbers_are_held(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    extra = {f"minimax-m3.attention.indexer.{key}": value}
    path = tiny_gguf.write_random(tmp_path / "m.gguf", "minimax-m3", extra_keys=extra)
    with pytest.raises(GgufError, match=message):
        plan(path, PlanOptions(256, gpu_layers=0), FREE)


def test_without_flash_attention_it_is_refused(tmp_path: Path) -> None:
    path = tiny_gguf.write_random(tmp_path / "m.gguf", "minimax-m3")
    choices = Choices(flash_attention=False)
    with pytest.raises(UsageError, match="with flash attention alone"):
        plan(path, PlanOptions(256, 0, choices), FREE)
