"""Headers that say too little, too much, or lie in several files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from planned import FREE
from sized_gguf import SHAPES, write_sized

from ggext.errors import GgufError, UsageError
from ggext.footprint.architecture import architecture
from ggext.footprint.planner import Choices, Memories, Planner
from ggext.gguf.open import read_gguf
from ggext.gguf.split import write_parts
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite
from ggext.plan import PlanOptions, plan

pytestmark = pytest.mark.usefixtures("two_cores")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"general.architecture": "mamba2", "mamba2.ssm.state_size": 16},
            "not known here",
        ),
        ({"llama.ssm.state_size": 16}, "not known here"),
        ({"llama.attention.causal": False}, "not known here"),
        ({"llama.block_count": 100000}, "llama.block_count is 100000"),
        ({"llama.embedding_length": "many"}, "llama.embedding_length is 'many'"),
        ({"llama.attention.head_count_kv": [2]}, "not a list of 2 numbers"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"llama.nextn_predict_layers": 2}, "no layer is left"),
        ({"split.count": 3}, "one of 3 parts, but not named as the first"),
    ],
)
def test_headers_that_say_too_little_or_too_much(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tiny_gguf.write_random(tmp_path / "odd.gguf", "llama", extra_keys=change)
    with pytest.raises(GgufError, match=message):
        plan(path, PlanOptions(256, gpu_layers=0), FREE)


@pytest.mark.parametrize("value", [[4, 4], "x", 0])
def test_the_numbers_of_a_state_are_held_too(value: Any, tmp_path: Path) -> None:
    """A KeyError or a TypeError of the graph, in a damaged file."""
    change = {"qwen3next.ssm.time_step_rank": value}
    path = tiny_gguf.write_random(tmp_path / "odd.gguf", "qwen3next", extra_keys=change)
    with pytest.raises(GgufError, match=r"ssm\.time_step_rank is"):
        plan(path, PlanOptions(256, gpu_layers=0), FREE)


@pytest.mark.parametrize(
    "shape", ["mixtral-8x7b", "gemma-3-4b", "deepseek-v2-lite", "phi-3-mini"]
)
def test_no_header_breaks_it_otherwise(shape: str, tmp_path: Path) -> None:
    """Any key with any value, any tensor missing: a plan, or an error that says what is wrong."""
    header = read_gguf(
        write_sized(tmp_path / "model.gguf", replace(SHAPES[shape], layers=2))
    )
    values = (
        0,
        1,
        3,
        2**31 - 1,
        2**31,
        -5,
        True,
        "x",
        0.5,
        [],
        [1],
        [7, 0],
        [2**31] * 2,
        ["x", "y"],
    )
    names = [name for name in header.tensors if not name.startswith("blk.1")]
    keys = [key for key in header.fields if key.startswith(header.arch)]
    changed = [
        replace(header, fields=header.fields | {k: Field(header.fields[k].type, v)})
        for k in keys
        for v in values
    ]
    changed += [
        replace(header, tensors={n: t for n, t in header.tensors.items() if n != name})
        for name in names
    ]
    changed += [
        replace(header, fields={k: f for k, f in header.fields.items() if k != key})
        for key in keys
    ]
    planned = 0
    for odd in changed:
        try:
            arch = architecture(odd)
            Planner(odd, arch, Choices(), 1).shares(
                Planner(odd, arch, Choices(), 1).context(512, FREE)
            )
            planned += 1
        except (GgufError, UsageError):
            pass
    assert 0 < planned < len(changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_type": "q9"}, "kv type 'q9' is unknown"),
        ({"kv_type": "q8_0", "flash_attention": False}, "needs flash attention"),
        ({"kv_type": "q8_0"}, "blocks of 32 values, and heads have 16"),
        ({"context": "all"}, "must be a number of tokens or auto"),
        ({"context": 0}, "the context is 0"),
        ({"context": 1 << 40}, "the context is 1099511627776"),
        ({"batch": -1}, "the batch is -1"),
        ({"gpu_layers": -1}, "gpu layers is -1"),
    ],
)
def test_what_llama_cpp_would_refuse_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tiny_gguf.write_random(tmp_path / "tiny.gguf", "llama")
    own = {"context": 256, "gpu_layers": 0} | {
        k: v for k, v in options.items() if k in ("context", "gpu_layers")
    }
    choices = {name: value for name, value in options.items() if name not in own}
    with pytest.raises(UsageError, match=message):
        plan(path, PlanOptions(**own, choices=Choices(**choices)), FREE)


def tensors_of(path: Path) -> list[TensorToWrite]:
    header = read_gguf(path)
    return [
        TensorToWrite(
            info.name,
            info.shape,
            info.type,
            info.nbytes,
            lambda name=info.name: [header.tensor_data(name)],
        )  # type: ignore[misc]
        for info in header.tensors.values()
    ]


def test_a_model_in_several_files_is_planned_as_one(tmp_path: Path) -> None:
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    whole, name = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    convert(ConvertOptions(DEMO_MODEL, whole, RopeScaling("none")))
    header = read_gguf(whole)
    first, *others = write_parts(name, header.fields, tensors_of(whole), most=1_000_000)
    options = PlanOptions(512, gpu_layers=0)
    assert len(others) > 1
    assert plan(first, options, FREE).ram == plan(whole, options, FREE).ram
    assert plan(others[0], options, FREE).ram == plan(whole, options, FREE).ram
    others[1].unlink()
    with pytest.raises(GgufError, match="00003-of"):
        plan(first, options, FREE)


def test_a_share_of_the_tokens_is_planned(demo_gguf: Path) -> None:
    """What a context allocates that holds a text of 2,048 tokens in a quarter of the cells, with a
    second sequence through which they move."""
    quarter = plan(demo_gguf, PlanOptions(2048, gpu_layers=0, keep=0.25), FREE)
    assert quarter.context.tokens == 512
    moving = PlanOptions(512, 0, Choices(moves=True))
    assert quarter.ram == plan(demo_gguf, moving, FREE).ram
    with pytest.raises(
        UsageError, match="keep is 2, but must be a share above 0, at most 1"
    ):
        PlanOptions(keep=2.0)


def test_the_chat_counts_all_parts_of_a_model(tmp_path: Path, demo_gguf: Path) -> None:
    pytest.importorskip("llama_cpp")
    from ggext.runtime import capacity
    from ggext.runtime.model import Model

    first, *_ = write_parts(
        tmp_path / "parts.gguf",
        read_gguf(demo_gguf).fields,
        tensors_of(demo_gguf),
        most=1_000_000,
    )
    found = plan(demo_gguf, PlanOptions(512, gpu_layers=0), FREE)
    with Model.open(first, gpu_layers=0) as model:
        room = capacity.room(model, Choices())
        assert room is not None
        assert (
            room.planner.shares(room.planner.context(512, Memories(room.free)))[0]
            == found.ram
        )
        assert room.context(512).batch == found.context.batch
        assert model.n_params == sum(
            math.prod(info.shape) for info in model.all_parts.tensors.values()
        )
