"""What a model and a context will take, from the file's header alone, and the largest context that
fits.

The parts are in `ggext.footprint`: this adds them up for RAM and for the memory of a GPU, and holds
them to what is free.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ggext.errors import UsageError
from ggext.footprint import machine, speeds
from ggext.footprint.architecture import architecture
from ggext.footprint.cache import STEP, Context
from ggext.footprint.planner import LONGEST, Choices, Memories, Planner, Share
from ggext.gguf.open import read_gguf
from ggext.gguf.shards import metadata_part, whole_header

#: Architectures whose figures the tests hold to what llama.cpp allocates.
MEASURED = frozenset(
    {
        "cohere2",
        "deepseek2",
        "deepseek32",
        "deepseek4",
        "dots1",
        "ernie4_5-moe",
        "falcon-h1",
        "gemma",
        "gemma2",
        "gemma3",
        "glm-dsa",
        "glm4moe",
        "gpt-oss",
        "granite",
        "granitehybrid",
        "lfm2",
        "llama",
        "minimax-m3",
        "mistral3",
        "nemotron_h",
        "nemotron_h_moe",
        "olmo2",
        "olmoe",
        "phi3",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen35",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
        "seed_oss",
        "smollm3",
        "starcoder2",
    }
)


@dataclass(frozen=True)
class PlanOptions:
    """What to plan for. Raises UsageError."""

    # Tokens; None: what the file is made for; "auto": the largest up to that which fits.
    context: int | str | None = None
    # None: all where llama.cpp has a GPU here.
    gpu_layers: int | None = None
    choices: Choices = field(default_factory=Choices)
    # The context has this share of the cells that the tokens would take (compress).
    keep: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.context, str) and self.context != "auto":
            raise UsageError(
                f"the context is {self.context!r}, but must be a number of tokens or auto"
            )
        if isinstance(self.context, int) and not 1 <= self.context <= LONGEST:
            raise UsageError(
                f"the context is {self.context}, but must be from 1 to {LONGEST} tokens"
            )
        if not 0 < self.keep <= 1:
            raise UsageError(
                f"keep is {self.keep:g}, but must be a share above 0, at most 1"
            )
        if self.gpu_layers is not None and self.gpu_layers < 0:
            raise UsageError(
                f"gpu layers is {self.gpu_layers}, but must not be negative"
            )


@dataclass(frozen=True)
class Plan:
    """What a model and a context need."""

    path: Path
    arch: str
    layers: int
    # Tokens that the file is made for.
    made_for: int
    context: Context
    gpu_layers: int
    ram: Share
    gpu: Share
    free: Memories
    # Tokens of the largest context that fits, whatever the file is made for; None: the free memory
    # is not known.
    largest: int | None
    windowed_layers: int
    # Whether this architecture's figures are held to llama.cpp's by a test.
    measured: bool

    @property
    def fits(self) -> bool | None:
        return self.free.hold(self.ram, self.gpu)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON: sizes in bytes, lengths in tokens."""
        values = asdict(self) | {"path": str(self.path), "fits": self.fits}
        values["ram"]["total"] = self.ram.total
        values["gpu"]["total"] = self.gpu.total
        return values


def plan(
    path: Path, options: PlanOptions | None = None, free: Memories | None = None
) -> Plan:
    """Plans the file's memory. ``free`` None: measured on this machine.

    Raises GgufError for a malformed file or an architecture whose memory is not known, UsageError
    for what llama.cpp would refuse.
    """
    options = options or PlanOptions()
    header = whole_header(read_gguf(metadata_part(path)))
    arch = architecture(header)
    choices = options.choices
    if options.keep < 1:
        choices = replace(choices, moves=True)  # as compress does
    free, gpu_layers = _devices(options.gpu_layers, free)
    flash_until = speeds.flash_until(arch) if not gpu_layers else 0
    planner = Planner(
        header,
        arch,
        choices,
        min(gpu_layers, len(arch.layers) + 1),
        flash_until,
    )
    largest = planner.largest(free)
    tokens = _length(planner, options, free)
    context = planner.context(max(math.ceil(options.keep * tokens), 1), free)
    ram, gpu = planner.shares(context)
    sliding = sum(layer.slides for layer in arch.layers) if arch.window else 0
    return Plan(
        path,
        arch.name,
        len(arch.layers),
        arch.context,
        context,
        planner.gpu_layers,
        ram,
        gpu,
        free,
        largest,
        sliding,
        arch.name in MEASURED,
    )


def _length(planner: Planner, options: PlanOptions, free: Memories) -> int:
    if isinstance(options.context, int):
        return options.context
    if options.context == "auto" and (fitting := planner.automatic(free)) is not None:
        return max(fitting, STEP)
    return planner.arch.context


def _devices(gpu_layers: int | None, free: Memories | None) -> tuple[Memories, int]:
    """What is free, and how many layers go to a GPU."""
    if free is None:
        free_gpu = None if gpu_layers == 0 else _free_gpu()
        free = Memories(machine.free_memory(), free_gpu)
    return free, (LONGEST if free.gpu else 0) if gpu_layers is None else gpu_layers


def _free_gpu() -> int | None:
    """Bytes that are free on all GPUs that the installed llama.cpp sees; None where it sees
    none."""
    from ggext.errors import GgextError
    from ggext.runtime import devices

    try:
        return sum(memory.free for memory in devices.gpu_memory()) or None
    except GgextError:  # llama.cpp is not installed, or in another version
        return None
