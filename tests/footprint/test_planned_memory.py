"""What `ggext plan` says against what llama.cpp allocates, over families and sizes; and what fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny_gguf
from family_rows import ROWS
from planned import FREE, GIB, path_weights
from sized_gguf import SHAPES, Allocated, logged_sizes, opened, write_sized
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.footprint.allocator import Graph, Tensor
from ggext.footprint.cache import KV_TYPES, Context, Swa
from ggext.footprint.planner import Choices, Memories, Share
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.plan import MEASURED, PlanOptions, plan

pytestmark = pytest.mark.usefixtures("two_cores")

#: Contexts that make different tensors the largest: tokens, batch, type of the cache, flash
#: attention, small windows.
CONTEXTS = {
    "chat": (8192, 128, "f16", False, True),
    "quantized": (8192, 512, "q8_0", True, True),
    "long": (32768, 512, "f16", False, True),
    "whole-windows": (32768, 512, "bf16", True, False),
    "short": (500, 512, "f32", False, True),
    "longest": (131072, 512, "q4_0", True, True),
    "wide": (4096, 2048, "f16", False, True),
}


def within(share: float, found: int, wanted: int) -> bool:
    return abs(found - wanted) <= share * wanted


@pytest.mark.parametrize(
    "shape", [name for name in SHAPES if SHAPES[name].arch not in IN_BLOCKS]
)
def test_the_plan_is_what_llama_cpp_allocates_for_published_models(
    shape: str, tmp_path: Path
) -> None:
    """Real sizes over files without tensors. Each figure by itself, so that large weights hide
    nothing. What chooses blocks has a file of its own."""
    pytest.importorskip("llama_cpp")
    path = write_sized(tmp_path / "model.gguf", SHAPES[shape])
    with opened(path) as make:
        for name, (tokens, batch, kv_type, flash, small) in CONTEXTS.items():
            options = PlanOptions(
                tokens, 0, Choices(kv_type, batch, flash, "small" if small else "full")
            )
            share, kind = plan(path, options, FREE).ram, KV_TYPES[kv_type]
            wanted = make(
                n_ctx=tokens,
                n_batch=batch,
                n_ubatch=batch,
                flash_attn_type=int(flash),
                type_k=kind,
                type_v=kind,
                swa_full=not small,
            )
            assert share.weights == wanted.weights, name
            for part in ("cache", "compute", "output"):
                assert within(0.02, getattr(share, part), getattr(wanted, part)), (
                    name,
                    part,
                    share,
                    wanted,
                )


@pytest.mark.parametrize(
    "shape", ["llama-3-8b", "gemma-3-4b", "glm-5-8-layers", "qwen3.5-27b"]
)
def test_flash_attention_reads_a_float32_cache_as_float16(
    shape: str, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    path = write_sized(tmp_path / "model.gguf", SHAPES[shape])
    with opened(path) as make:
        for tokens, batch in ((4096, 1), (4096, 128)):
            options = PlanOptions(tokens, 0, Choices("f32", batch, True, "full"))
            wanted = make(
                n_ctx=tokens,
                n_batch=batch,
                n_ubatch=batch,
                flash_attn_type=1,
                type_k=0,
                type_v=0,
                swa_full=True,
            )
            found = plan(path, options, FREE).ram
            assert within(0.02, found.compute, wanted.compute), (batch, found, wanted)


def test_every_architecture_that_is_called_measured_is() -> None:
    assert {shape.arch for shape in SHAPES.values()} == MEASURED


TINY = ["granitemoe", "llama", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe"]
WINDOWED = [
    *("afmoe", "cohere2", "gemma2", "gemma3", "gemma4", "gpt-oss", "laguna", "mimo2"),
    *("muse-glimmer", "olmo2", "step35"),
]


@pytest.mark.parametrize("arch", TINY)
@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 4000},
        {"n_ctx": 3000, "n_batch": 700},
        {"n_ctx": 2048, "kv_type": "f32"},
    ],
)
def test_the_plan_is_what_a_session_allocates(
    arch: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Real models, real memory, and what `ggext chat` chooses where nothing was asked."""
    found, wanted = planned_and_allocated(tmp_path, arch, options)
    assert (found.weights, found.cache) == (wanted.weights, wanted.cache)
    assert within(0.05, found.compute, wanted.compute)
    assert within(0.05, found.total, wanted.total)


@pytest.mark.parametrize("arch", ["deepseek32", "glm-dsa"])
@pytest.mark.parametrize(
    "options", [{"n_ctx": 3000, "n_batch": 700}, {"n_ctx": 2048, "kv_type": "f32"}]
)
def test_the_plan_is_what_a_session_with_an_indexer_allocates(
    arch: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Two caches, each logged to a hundredth of a MiB."""
    found, wanted = planned_and_allocated(tmp_path, arch, options)
    assert found.weights == wanted.weights
    assert abs(found.cache - wanted.cache) < 0.02 * 2**20
    assert within(0.05, found.compute, wanted.compute)


@pytest.mark.parametrize("arch", WINDOWED)
@pytest.mark.parametrize("swa", ["auto", "full", "small"])
@pytest.mark.parametrize(
    "options", [{"n_ctx": 4000}, {"n_ctx": 1024, "n_batch": 700, "kv_type": "f32"}]
)
def test_the_plan_is_what_a_session_with_sliding_windows_allocates(
    arch: str, swa: Swa, options: dict[str, Any], tmp_path: Path
) -> None:
    """At 4,000 tokens the small cache is the default, and not at 1,024."""
    pytest.importorskip("llama_cpp")
    path = tiny_gguf.write_random(
        tmp_path / "tiny.gguf",
        arch,
        extra_keys={f"{arch}.attention.sliding_window": 256},
    )
    found = plan(
        path,
        PlanOptions(
            options["n_ctx"],
            0,
            Choices(options.get("kv_type", "f16"), options.get("n_batch"), swa=swa),
        ),
        FREE,
    )
    wanted = session_sizes(path, options | {"swa": swa})
    assert found.context.whole_windows == (
        options["n_ctx"] == 1024 if swa == "auto" else swa == "full"
    )
    assert (
        abs(found.ram.cache - wanted.cache) < 0.02 * 2**20
    )  # two caches, each logged to a hundredth of a MiB
    assert within(0.05, found.ram.compute, wanted.compute)
    assert within(0.05, found.ram.total - found.ram.checkpoints, wanted.total)


@pytest.mark.parametrize("row", ["gemma4_text", "gemma4_text-26b-a4b"])
def test_gemma_4_with_shared_keys_and_with_experts(row: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("transformers")
    said = ROWS[row]
    config = said.config | {"sliding_window": 256}
    checkpoint = make_model(tmp_path / "model", said.model_type, **config)
    path = tmp_path / "out.gguf"
    convert(ConvertOptions(checkpoint, path))
    found = plan(path, PlanOptions(4000, 0, Choices(swa="full")), FREE).ram
    wanted = session_sizes(path, {"n_ctx": 4000, "swa": "full"})
    assert abs(found.cache - wanted.cache) < 0.02 * 2**20
    assert within(0.05, found.compute, wanted.compute)
    assert within(0.05, found.total - found.checkpoints, wanted.total)


@pytest.mark.parametrize("gib", [8, 9, 10, 11, 12, 16, 24])
def test_the_default_fits_no_less_than_either_choice(gib: int, tmp_path: Path) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["gemma-3-4b"])
    free = Memories(gib * GIB)
    largest = {
        swa: plan(path, PlanOptions(4096, 0, Choices(swa=swa)), free).largest
        for swa in get_args(Swa)
    }
    assert largest["auto"] == max(largest["full"], largest["small"])


def planned_and_allocated(
    folder: Path, arch: str, options: dict[str, Any]
) -> tuple[Share, Allocated]:
    pytest.importorskip("llama_cpp")
    path = tiny_gguf.write_random(folder / "tiny.gguf", arch)
    choices = Choices(options.get("kv_type", "f16"), options.get("n_batch"))
    planned = plan(path, PlanOptions(options["n_ctx"], 0, choices), FREE).ram
    return planned, session_sizes(path, options)


def session_sizes(path: Path, options: dict[str, Any]) -> Allocated:
    from ggext.runtime import llama
    from ggext.runtime.engine import Model, Session, SessionOptions

    with (
        Model.open(path, gpu_layers=0) as model,
        llama.listening(llama.Log(None)),
        Session(model, SessionOptions(**options)),
    ):
        return logged_sizes(model.size, llama.current_log())


def test_the_placement_reuses_what_is_free_and_what_is_read_last() -> None:
    def peak(*results: Tensor) -> int:
        graph = Graph()
        for result in results:
            graph.expand(result)
        return graph.peak()

    def start() -> Tensor:
        return Tensor((8,))  # 32 bytes

    source = start()
    assert peak(source) == 32
    assert peak(Tensor((8,), (start(),))) == 64
    assert peak(Tensor((8,), (start(),), in_place=True)) == 32
    assert (
        peak(Tensor((16,), (start(),), in_place=True)) == 96
    )  # another shape: its own place
    chain = Tensor((8,), (Tensor((8,), (Tensor((8,), (start(),)),)),))
    assert peak(chain) == 64  # the first is free when the third is made
    view = Tensor((8,), (source,), base=source)
    assert (
        peak(Tensor((8,), (view,), in_place=True)) == 64
    )  # ggml does not write into views
    stored = Tensor((1000,), (start(),), stored=True)
    assert peak(stored) == 32
    assert (
        peak(Tensor((1,), (start(),), item=2)) == 64
    )  # sizes are whole multiples of 32


def test_layers_go_to_a_gpu_from_the_last(tmp_path: Path) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["llama-3-8b"])
    plans = [
        plan(path, PlanOptions(8192, gpu_layers=n), FREE) for n in (0, 1, 17, 33, 99)
    ]
    none, output, half, every, more = plans
    assert none.gpu.total == 0
    assert (
        output.gpu.weights == 2 * 4096 * 128256 + 4 * 4096
    )  # the output matrix and its norm
    assert output.gpu.cache == 0
    assert half.gpu.cache == half.ram.cache == none.ram.cache // 2
    assert (every.ram.cache, every.gpu.cache) == (0, none.ram.cache)
    assert every.ram.weights == 2 * 4096 * 128256  # the embedding stays
    assert every.ram.compute < every.gpu.compute
    assert (more.gpu, more.gpu_layers) == (every.gpu, 33)
    assert {p.ram.weights + p.gpu.weights for p in plans} == {none.ram.weights}


def test_a_tied_embedding_lies_in_both_memories(tmp_path: Path) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["llama-3.2-1b"])
    everything = plan(path, PlanOptions(4096, gpu_layers=99), FREE)
    assert (
        everything.ram.weights + everything.gpu.weights
        == path_weights(path) + 2 * 2048 * 128256
    )


@pytest.mark.parametrize("gib", [3, 4, 6, 20, 60])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_the_largest_context_fits_and_the_next_does_not(
    gib: int, kv_type: str, tmp_path: Path
) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["llama-3.2-1b"])
    free = Memories(gib * GIB)
    largest = plan(path, PlanOptions(256, 0, Choices(kv_type)), free).largest
    assert largest is not None
    assert largest % 256 == 0
    assert largest > 0
    assert plan(path, PlanOptions(largest, 0, Choices(kv_type)), free).fits
    assert not plan(path, PlanOptions(largest + 256, 0, Choices(kv_type)), free).fits


def test_auto_takes_what_fits_up_to_what_the_file_is_made_for(tmp_path: Path) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["llama-3.2-1b"])
    automatic = PlanOptions("auto", gpu_layers=0)
    little, much = (plan(path, automatic, Memories(gib * GIB)) for gib in (4, 64))
    assert little.largest is not None
    assert (
        0.6 * little.largest
        < little.context.tokens
        < little.largest
        < little.made_for
        == 131072
    )
    assert little.fits
    assert not little.context.flash_attention  # the largest would be much slower
    assert much.context.tokens == 131072
    assert much.largest is not None
    assert much.largest > 131072
    assert plan(path, automatic, Memories(GIB)).fits is False
    assert plan(path, automatic, Memories(GIB)).largest == 0


def test_what_is_not_known_is_not_called_fitting(tmp_path: Path) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["llama-3.2-1b"])
    assert plan(path, PlanOptions(4096, gpu_layers=0), Memories(None)).fits is None
    partly = plan(path, PlanOptions(4096, gpu_layers=5), Memories(64 * GIB))
    assert (partly.fits, partly.largest) == (None, None)
    assert plan(path, PlanOptions(4096, gpu_layers=5), Memories(GIB // 2)).fits is False
    assert (
        plan(path, PlanOptions(4096, gpu_layers=99), Memories(64 * GIB, 8 * GIB)).fits
        is True
    )
    assert (
        plan(path, PlanOptions(4096, gpu_layers=99), Memories(64 * GIB, GIB)).fits
        is False
    )


def test_a_window_that_is_kept_small_holds_the_window_and_the_batch(
    tmp_path: Path,
) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["gemma-3-4b"])
    small, whole = (
        plan(path, PlanOptions(32768, 0, Choices(swa=s)), FREE)
        for s in ("small", "full")
    )
    token = 2 * 2 * 4 * 256  # keys and values of a layer, 2 bytes each
    assert whole.ram.cache == 34 * 32768 * token
    assert small.ram.cache == (5 * 32768 + 29 * 1280) * token
    assert whole.windowed_layers == 29


def test_a_second_sequence_widens_the_windows_and_the_logits() -> None:
    context = Context(4096, 512, whole_windows=True)
    assert replace(context, sequences=2).cells == context.cells == 4096


@pytest.mark.parametrize(
    ("gib", "gpu_layers", "kv_type", "wanted"),
    [
        (60, 0, "f16", False),
        (7, 0, "f16", True),
        (3, 0, "f16", True),
        (60, 0, "q8_0", True),
        (60, 99, "f16", True),
    ],
    ids=[
        "it fits without",
        "it fits in no other way",
        "it does not fit at all",
        "quantized",
        "on a GPU",
    ],
)
def test_flash_attention_is_on_where_it_is_needed(
    gib: int, gpu_layers: int, kv_type: str, wanted: bool, tmp_path: Path
) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["llama-3.2-1b"])
    found = plan(
        path,
        PlanOptions(131072, gpu_layers, Choices(kv_type)),
        Memories(gib * GIB, 60 * GIB),
    )
    assert found.context.flash_attention is wanted
    assert found.fits is (gib > 3)
