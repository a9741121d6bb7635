"""What `ggext plan` says against what llama.cpp allocates, over families and sizes; and what is
free, and what fits."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny_gguf
from click.testing import CliRunner
from sized_gguf import SHAPES, Allocated, logged_sizes, opened, write_sized

from ggext.cli import main
from ggext.errors import GgufError, UsageError
from ggext.footprint import defaults, machine
from ggext.footprint.allocator import Graph, Tensor
from ggext.footprint.architecture import architecture
from ggext.footprint.cache import KV_TYPES, Context, Swa
from ggext.footprint.planner import Choices, Memories, Planner
from ggext.gguf.open import read_gguf
from ggext.gguf.split import write_parts
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite
from ggext.plan import MEASURED, Plan, PlanOptions, plan

GIB = 1 << 30
FREE = Memories(64 * GIB)
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


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer cores make smaller batches."""
    monkeypatch.setattr(defaults, "physical_cores", lambda: 2)


def within(share: float, found: int, wanted: int) -> bool:
    return abs(found - wanted) <= share * wanted


@pytest.mark.parametrize("shape", SHAPES)
def test_the_plan_is_what_llama_cpp_allocates_for_published_models(
    shape: str, tmp_path: Path
) -> None:
    """Real sizes over files without tensors. Each figure by itself, so that large weights hide
    nothing."""
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


def test_every_architecture_that_is_called_measured_is() -> None:
    assert {shape.arch for shape in SHAPES.values()} == MEASURED


TINY = ["granitemoe", "llama", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe"]
WINDOWED = ["cohere2", "gemma2", "gemma3", "gpt-oss", "olmo2"]


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
    pytest.importorskip("llama_cpp")
    path = tiny_gguf.write_random(tmp_path / "tiny.gguf", arch)
    choices = Choices(options.get("kv_type", "f16"), options.get("n_batch"))
    found = plan(path, PlanOptions(options["n_ctx"], 0, choices), FREE).ram
    wanted = session_sizes(path, options)
    assert (found.weights, found.cache) == (wanted.weights, wanted.cache)
    assert within(0.05, found.compute, wanted.compute)
    assert within(0.05, found.total, wanted.total)


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


@pytest.mark.parametrize("gib", [8, 9, 10, 11, 12, 16, 24])
def test_the_default_fits_no_less_than_either_choice(gib: int, tmp_path: Path) -> None:
    path = write_sized(tmp_path / "model.gguf", SHAPES["gemma-3-4b"])
    free = Memories(gib * GIB)
    largest = {
        swa: plan(path, PlanOptions(4096, 0, Choices(swa=swa)), free).largest
        for swa in get_args(Swa)
    }
    assert largest["auto"] == max(largest["full"], largest["small"])


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


def path_weights(path: Path) -> int:
    return plan(path, PlanOptions(256, gpu_layers=0), FREE).ram.weights


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
    """What a context allocates that holds a text of 2,048 tokens in a quarter of the cells."""
    quarter = plan(demo_gguf, PlanOptions(2048, gpu_layers=0, keep=0.25), FREE)
    assert quarter.context.tokens == 512
    assert quarter.ram == plan(demo_gguf, PlanOptions(512, gpu_layers=0), FREE).ram
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


class System:
    """A /proc and a /sys/fs/cgroup of our own."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        self.write(
            self.proc / "meminfo", "MemTotal:  9000 kB\nMemAvailable:    1000 kB\n"
        )

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, path: str, **files: str) -> None:
        for name, text in files.items():
            self.write(self.groups / path / name.replace("__", "."), text)

    def free(self) -> int | None:
        return machine.free_memory(self.proc, self.groups)


def test_free_memory_is_what_the_system_calls_available(tmp_path: Path) -> None:
    assert System(tmp_path).free() == 1000 * 1024


def test_a_container_s_limit_counts_and_its_cached_files_do_not(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.write(system.proc / "self" / "cgroup", "0::/a/b\n")
    system.group("a/b", memory__max="max\n", memory__current="5\n")
    assert system.free() == 1000 * 1024
    system.group(
        "a",
        memory__max="900000\n",
        memory__current="700000\n",
        memory__stat="file 1\ninactive_file 50000\n",
    )
    assert system.free() == 250000
    system.group("", memory__max="800000\n", memory__current="700000\n")
    assert system.free() == 100000
    system.group("", memory__max="100\n", memory__current="700000\n")
    assert system.free() == 0


def test_the_older_kind_of_container_counts_too(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.write(
        system.proc / "self" / "cgroup", "12:cpu,cpuacct:/x\n5:memory:/docker/1\n0::/\n"
    )
    system.group(
        "memory/docker/1",
        memory__limit_in_bytes="600000\n",
        memory__usage_in_bytes="500000\n",
        memory__stat="inactive_file 1\ntotal_inactive_file 20000\n",
    )
    assert system.free() == 120000


def test_elsewhere_a_share_of_the_physical_memory_counts(tmp_path: Path) -> None:
    free = machine.free_memory(tmp_path / "none", tmp_path / "none")
    assert free is not None
    assert free > GIB // 4


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["plan", *arguments])
    return done.exit_code, done.output


def test_the_command_line_tells_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "physical_cores", lambda: 4)
    monkeypatch.setattr(machine, "free_memory", lambda: 8 * GIB)
    monkeypatch.chdir(tmp_path)
    write_sized(tmp_path / "m.gguf", SHAPES["llama-3.2-1b"])
    code, text = run("m.gguf", "--context", "32768", "--gpu-layers", "0")
    assert code == 0
    assert text == (
        "m.gguf: llama, 16 layers, made for 131,072 tokens\n"
        "context 32,768 tokens, 128 at a time, kv f16, flash attention off\n"
        "\n"
        "                     RAM\n"
        "weights          2.3 GiB\n"
        "KV cache         1.0 GiB\n"
        "computing      533.5 MiB\n"
        "logits         501.0 KiB\n"
        "total            3.8 GiB\n"
        "free             8.0 GiB\n"
        "\n"
        "it fits; memory holds up to 171,520 tokens, the file is made for 131,072\n"
    )


def test_a_context_that_the_file_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """newcomer.md, B3: "it fits", and the largest read as an invitation."""
    monkeypatch.setattr(machine, "free_memory", lambda: 16 * GIB)
    monkeypatch.chdir(tmp_path)
    write_sized(tmp_path / "m.gguf", SHAPES["llama-3.2-1b"])
    code, text = run("m.gguf", "--context", "256k", "--gpu-layers", "0")
    assert code == 0
    assert (
        "it fits in memory, but the file is made for 131,072 tokens: what stands\n"
        "past those is misread. ggext convert m.gguf --target-context 262144\n"
        "makes one that reaches them; memory holds up to " in text
    )


def test_the_command_line_says_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "physical_cores", lambda: 2)
    monkeypatch.setattr(machine, "free_memory", lambda: 4 * GIB)
    path = write_sized(tmp_path / "m.gguf", SHAPES["gemma-3-4b"])
    code, text = run(str(path), "--gpu-layers", "0")
    assert code == 1
    assert (
        "it does not fit, nor does any context: take a smaller model or quantization\n"
        in text
    )
    monkeypatch.setattr(machine, "free_memory", lambda: 10 * GIB)
    code, text = run(str(path), "--gpu-layers", "0", "--no-flash-attention")
    assert (code, "q8_0" in text) == (1, False)
    code, text = run(str(path), "--gpu-layers", "0", "--swa", "full")
    assert code == 1
    assert (
        "it does not fit; memory holds up to 16,896 tokens\nwith --kv q8_0: 31,744 tokens\n"
        in text
    )
    assert "29 layers see a sliding window; their cache keeps every token\n" in text
    code, text = run(str(path), "--gpu-layers", "0")
    assert code == 1
    assert "it does not fit; memory holds up to 72,448 tokens\n" in text
    assert "window copies  696.0 MiB\n" in text
    assert (
        "29 layers see a sliding window; their cache keeps the window's tokens\n"
        in text
    )


def test_an_architecture_that_was_not_measured_is_called_so(tmp_path: Path) -> None:
    path = tiny_gguf.write_random(tmp_path / "tiny.gguf", "arcee")
    code, text = run(str(path), "--gpu-layers", "0")
    assert code == 0
    assert "the architecture arcee was not held to llama.cpp" in text


def test_json_has_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "physical_cores", lambda: 4)
    monkeypatch.setattr(machine, "free_memory", lambda: 8 * GIB)
    path = write_sized(tmp_path / "m.gguf", SHAPES["llama-3.2-1b"])
    code, text = run(
        str(path), "--context", "auto", "--kv", "q8_0", "--gpu-layers", "0", "--json"
    )
    found = json.loads(text)
    assert code == 0
    assert found["fits"] is True
    assert found["context"] == {
        "tokens": 131072,
        "batch": 256,
        "kv_type": "q8_0",
        "flash_attention": True,
        "whole_windows": True,
        "sequences": 1,
    }
    assert found["ram"]["total"] == sum(
        found["ram"][part] for part in ("weights", "cache", "compute", "output")
    )
    assert found["free"] == {"ram": 8 * GIB, "gpu": None}
    assert set(found) == set(Plan.__dataclass_fields__) | {"fits"}


def test_a_plan_needs_neither_llama_cpp_nor_the_tensors(tmp_path: Path) -> None:
    """The file's 116 GiB are a hole; the package is made impossible to import."""
    path = write_sized(tmp_path / "m.gguf", SHAPES["deepseek-v3-8-layers"])
    assert path.stat().st_size > 100 * GIB
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from pathlib import Path; from ggext.plan import plan\n"
        f"found = plan(Path({str(path)!r})); print(found.ram.weights, found.gpu.total)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(path_weights(path)), "0"]
