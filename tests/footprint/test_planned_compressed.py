"""DeepSeek 4, whose tokens are compressed: the plan against what llama.cpp allocates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from planned import FREE
from sized_gguf import SHAPES, Allocated, Shape, logged_sizes, opened, write_sized

from ggext.errors import GgufError
from ggext.footprint.cache import CHECKPOINTS, KV_TYPES, Swa
from ggext.footprint.planner import Choices
from ggext.plan import PlanOptions, plan

pytestmark = pytest.mark.usefixtures("two_cores")

SHAPE = SHAPES["deepseek-v4-flash-6-layers"]
#: Caches and states, each logged to a hundredth of a MiB.
LOGGED = 8 * 0.005 * 2**20
#: Tokens, batch, type of the cache, flash attention, small windows.
CONTEXTS = [
    (8192, 128, "f16", False, True),
    (500, 512, "f32", False, True),
    (300, 100, "f32", True, False),
    (65536, 512, "bf16", True, False),
    (131072, 512, "q4_0", True, True),
    (4096, 2048, "q8_0", True, True),
    (1000, 1, "f16", False, True),
]


def of_layers(ratios: list[int], by_token: int, index: int = 128) -> Shape:
    """The published sizes, with other layers. ``by_token``: layers that choose experts by it."""
    keys = {
        "attention.compress_ratios": ratios,
        "attention.indexer.key_length": index,
        "hash_layer_count": by_token,
        "swiglu_clamp_exp": [10.0] * len(ratios),
    }
    return replace(SHAPE, layers=len(ratios), keys=SHAPE.keys | keys)


@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        of_layers([4, 128], 0),
        of_layers([128, 128, 4, 0], 2),
        of_layers([0, 4, 4, 128], 4),
        of_layers([4, 128, 4], 1, index=512),
    ],
    ids=["published", "two", "all-first", "by-token", "index-of-a-head"],
)
def test_the_plan_is_what_llama_cpp_allocates(shape: Shape, tmp_path: Path) -> None:
    """An indexer's keys of a head's size are rotated in every cache, quantized or not."""
    pytest.importorskip("llama_cpp")
    path = write_sized(tmp_path / "model.gguf", shape)
    with opened(path) as make:
        for tokens, batch, kv_type, flash, small in CONTEXTS:
            swa: Swa = "small" if small else "full"
            choices = Choices(kv_type, batch, flash, swa)
            found = plan(path, PlanOptions(tokens, 0, choices), FREE).ram
            wanted = make(
                n_ctx=tokens,
                n_batch=batch,
                n_ubatch=batch,
                flash_attn_type=int(flash),
                type_k=KV_TYPES[kv_type],
                type_v=KV_TYPES[kv_type],
                swa_full=not small,
            )
            assert found.weights == wanted.weights
            assert abs(found.cache - wanted.cache) <= LOGGED
            assert abs(found.output - wanted.output) <= 0.01 * 2**20
            assert abs(found.compute - wanted.compute) <= max(
                0.001 * wanted.compute, 0.01 * 2**20
            ), (tokens, found, wanted)


@pytest.mark.parametrize("swa", ["auto", "full", "small"])
def test_the_plan_is_what_a_session_allocates(swa: Swa, tmp_path: Path) -> None:
    """What is copied, so that a text can be cut back, too."""
    pytest.importorskip("llama_cpp")
    path = tiny_gguf.write_random(
        tmp_path / "tiny.gguf",
        "deepseek4",
        extra_keys={"deepseek4.context_length": 1024},
    )
    found = plan(path, PlanOptions(1024, 0, Choices(batch=64, swa=swa)), FREE)
    wanted, copies = session_sizes(path, {"n_ctx": 1024, "n_batch": 64, "swa": swa})
    assert found.context.whole_windows is (swa == "full")
    assert found.measured
    assert found.ram.weights == wanted.weights
    assert abs(found.ram.cache - wanted.cache) <= LOGGED
    assert abs(found.ram.compute - wanted.compute) <= 0.01 * 2**20
    assert len(copies) == CHECKPOINTS
    # next to the values a copy has their positions and the sizes of its parts
    assert 0 <= sum(copies) - found.ram.checkpoints < 1024 * CHECKPOINTS


def session_sizes(path: Path, options: dict[str, Any]) -> tuple[Allocated, list[int]]:
    """And the bytes of each copy that a session of many turns keeps."""
    from ggext.runtime import llama
    from ggext.runtime.engine import Model, Session, SessionOptions

    ids = [3 + 7 * i % 250 for i in range(900)]
    with (
        Model.open(path, gpu_layers=0) as model,
        llama.listening(llama.Log(None)),
        Session(model, SessionOptions(**options)) as session,
    ):
        sizes = logged_sizes(model.size, llama.current_log())
        for count in range(100, 900, 100):
            session.evaluate(ids[:count])
        kept = session.cache.checkpoints.kept
        return sizes, [copy.data.nbytes for copy in kept]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.compress_ratios", [4, 128]),
        ("attention.compress_ratios", [0, 4, 4]),
        ("attention.indexer.key_length", 0),
        ("attention.indexer.head_count", "x"),
        ("attention.output_group_count", 0),
        ("attention.output_lora_rank", [1]),
        ("hyper_connection.count", 0),
    ],
)
def test_the_numbers_are_held(key: str, value: Any, tmp_path: Path) -> None:
    path = tiny_gguf.write_random(
        tmp_path / "odd.gguf", "deepseek4", extra_keys={f"deepseek4.{key}": value}
    )
    with pytest.raises(GgufError, match=key.rpartition(".")[2]):
        plan(path, PlanOptions(256, gpu_layers=0), FREE)
