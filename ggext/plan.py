"""What a model and a context will take, from the file's header alone, and the largest context that fits.

The parts are in `ggext.footprint`: this adds them up for RAM and for the memory of a GPU, and holds them to what is
free.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ggext.errors import GgufError, UsageError
from ggext.footprint import defaults, machine
from ggext.footprint.architecture import Architecture, architecture
from ggext.footprint.cache import STEP, Context, cache_bytes, is_quantized
from ggext.footprint.graph import compute_bytes, input_bytes
from ggext.gguf.reader import GgufFile, read_gguf

#: Architectures whose figures the tests hold to what llama.cpp allocates.
MEASURED = frozenset({
    "cohere2", "deepseek2", "gemma", "gemma2", "gemma3", "gpt-oss", "granite", "llama", "mistral3", "olmo2", "phi3",
    "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "seed_oss", "smollm3", "starcoder2",
})  # fmt: skip
_HEADROOM = 0.95  # of what is free; the rest is for threads' buffers and for what others begin to use
_LONGEST = 1 << 26  # tokens; beyond it no search goes


@dataclass(frozen=True)
class PlanOptions:
    """``context`` in tokens, None: what the file is made for; "auto": the largest up to that which fits. ``batch`` and
    ``flash_attention`` None: as `ggext chat` chooses. ``gpu_layers`` None: all where llama.cpp has a GPU here.
    ``small_windows``: layers with a sliding window keep the window's tokens only. Raises UsageError."""

    context: int | str | None = None
    kv_type: str = "f16"
    batch: int | None = None
    flash_attention: bool | None = None
    gpu_layers: int | None = None
    small_windows: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.context, str) and self.context != "auto":
            raise UsageError(f"the context is {self.context!r}, but must be a number of tokens or auto")
        for name in ("context", "batch", "gpu_layers"):
            value = getattr(self, name)
            if isinstance(value, int) and not (name != "gpu_layers") <= value <= _LONGEST:
                raise UsageError(
                    f"{name.replace('_', ' ')} is {value}; it must be at most {_LONGEST}, and not negative"
                )


@dataclass(frozen=True)
class Share:
    """Bytes in one memory. ``output``: the logits that the program reads."""

    weights: int = 0
    cache: int = 0
    compute: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute + self.output


@dataclass(frozen=True)
class Memories:
    """Bytes that are free, None: not known. ``gpu`` is the sum over all of them."""

    ram: int | None
    gpu: int | None = None

    def hold(self, ram: Share, gpu: Share) -> bool | None:
        """Whether both fit with a twentieth to spare; None: not known."""
        answers = [_fits(ram, self.ram), _fits(gpu, self.gpu)]
        return False if False in answers else None if None in answers else True


def _fits(share: Share, free: int | None) -> bool | None:
    if not share.total:
        return True
    return None if free is None else share.total <= free * _HEADROOM


@dataclass(frozen=True)
class Plan:
    """What `plan` found. ``made_for``: tokens that the file is made for. ``largest``: tokens of the largest context
    that fits, whatever the file is made for; None: the free memory is not known. ``measured``: this architecture's
    figures are held to llama.cpp's."""

    path: Path
    arch: str
    layers: int
    made_for: int
    context: Context
    gpu_layers: int
    ram: Share
    gpu: Share
    free: Memories
    largest: int | None
    windowed_layers: int
    measured: bool

    @property
    def fits(self) -> bool | None:
        return self.free.hold(self.ram, self.gpu)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON: sizes in bytes, lengths in tokens."""
        values = asdict(self) | {"path": str(self.path), "fits": self.fits}
        values["ram"]["total"], values["gpu"]["total"] = self.ram.total, self.gpu.total
        return values


def plan(path: Path, options: PlanOptions | None = None, free: Memories | None = None) -> Plan:
    """Plans the file's memory. ``free`` None: measured on this machine.

    Raises GgufError for a malformed file or an architecture whose memory is not known, UsageError for what llama.cpp
    would refuse.
    """
    options = options or PlanOptions()
    header = read_gguf(path)
    if header.get("split.count", 1) > 1:
        raise GgufError(
            f"{path} is one of {header.get('split.count')} parts: merge them first (llama-gguf-split --merge)"
        )
    arch = architecture(header)
    free, gpu_layers = _devices(options.gpu_layers, free)
    planner = _Planner(header, arch, options, min(gpu_layers, len(arch.layers) + 1))
    largest = planner.largest(free)
    context = planner.context(_length(arch, options, largest))
    ram, gpu = planner.shares(context)
    return Plan(
        path, arch.name, len(arch.layers), arch.context, context, planner.gpu_layers, ram, gpu, free, largest,
        sum(layer.slides for layer in arch.layers) if arch.window else 0, arch.name in MEASURED,
    )  # fmt: skip


def _length(arch: Architecture, options: PlanOptions, largest: int | None) -> int:
    if isinstance(options.context, int):
        return options.context
    if options.context == "auto" and largest is not None:
        return max(min(largest, arch.context), STEP)
    return arch.context


def _devices(gpu_layers: int | None, free: Memories | None) -> tuple[Memories, int]:
    """What is free, and how many layers go to a GPU."""
    if free is None:
        free = Memories(machine.free_memory(), None if gpu_layers == 0 else _free_gpu())
    return free, (_LONGEST if free.gpu else 0) if gpu_layers is None else gpu_layers


def _free_gpu() -> int | None:
    """Bytes that are free on all GPUs that the installed llama.cpp sees; None where it sees none."""
    from ggext.errors import GgextError
    from ggext.runtime import devices

    try:
        return sum(memory.free for memory in devices.gpu_memory()) or None
    except GgextError:  # llama.cpp is not installed, or in another version
        return None


@dataclass(frozen=True)
class _Planner:
    header: GgufFile
    arch: Architecture
    options: PlanOptions
    gpu_layers: int

    def context(self, tokens: int) -> Context:
        on_gpu, kv_type = self.gpu_layers > 0, self.options.kv_type
        batch = self.options.batch or defaults.batch(on_gpu)
        flash = self.options.flash_attention
        if flash is None:
            heads = max(layer.heads for layer in self.arch.layers)
            flash = defaults.flash_attention(heads, tokens, batch, on_gpu=on_gpu, quantized=is_quantized(kv_type))
        return Context(tokens, batch, kv_type, flash, whole_windows=not self.options.small_windows)

    def shares(self, context: Context) -> tuple[Share, Share]:
        """What lies in RAM, and what on the GPU."""
        caches, first = cache_bytes(self.arch, context), self._first_on_gpu
        on_gpu, in_ram = self._weights()
        compute = compute_bytes(self.arch, context)
        output = 4 * self.arch.vocabulary * context.sequences
        if not self.gpu_layers:
            return Share(in_ram, sum(caches), compute, output), Share()
        beside = input_bytes(self.arch, context) if first == 0 else compute
        return Share(in_ram, sum(caches[:first]), beside, output), Share(on_gpu, sum(caches[first:]), compute)

    @property
    def _first_on_gpu(self) -> int:
        """llama.cpp puts the last layers there, and counts the output as one more."""
        return max(len(self.arch.layers) + 1 - self.gpu_layers, 0)

    def _weights(self) -> tuple[int, int]:
        """Bytes on the GPU, and in RAM. The embedding stays in RAM; where it is the output too, the GPU has a copy."""
        layers, first = len(self.arch.layers), self._first_on_gpu
        on_gpu = in_ram = 0
        for name, info in self.header.tensors.items():
            layer = _layer_of(name)
            if layer is not None and layer >= layers:
                continue  # a layer for speculation, which is not loaded
            output = name.startswith("output") or (name == "token_embd.weight" and not self.arch.has("output.weight"))
            there = bool(self.gpu_layers) and (layer >= first if layer is not None else output)
            on_gpu += info.nbytes * there
            in_ram += info.nbytes * (not there or name == "token_embd.weight")
        return on_gpu, in_ram

    def largest(self, free: Memories) -> int | None:
        """Tokens of the largest context that fits, a multiple of 256; 0: none does, None: not known."""

        def too_large(steps: int, planner: _Planner) -> bool:
            return not free.hold(*planner.shares(planner.context(steps * STEP)))

        if free.hold(*self.shares(self.context(STEP))) is None:
            return None

        # where flash attention begins by itself, the need falls once: so both sides of that are searched
        always = replace(self, options=replace(self.options, flash_attention=True))
        planners = (self, always) if self.options.flash_attention is None else (self,)
        found = [_last_before(partial(too_large, planner=planner), _LONGEST // STEP) for planner in planners]
        return max((steps for steps in found if steps and not too_large(steps, self)), default=0) * STEP


def _last_before(too_large: Callable[[int], bool], most: int) -> int:
    """The last number from 1 to `most` for which the answer is no, 0 without one; the answer turns once."""
    return bisect_left(range(1, most + 1), True, key=too_large)


def _layer_of(name: str) -> int | None:
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else None
