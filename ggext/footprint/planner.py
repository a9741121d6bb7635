"""The parts added up, for RAM and for the memory of a GPU, and the largest context that a machine holds."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property

from ggext.errors import UsageError
from ggext.footprint import defaults
from ggext.footprint.architecture import Architecture
from ggext.footprint.cache import STEP, Context, cache_bytes, is_quantized
from ggext.footprint.graph import compute_bytes, input_bytes
from ggext.gguf.reader import GgufFile

LONGEST = 1 << 26  # tokens; beyond it no search goes
_HEADROOM = 0.95  # of what is free; the rest is for threads' buffers and for what others begin to use


@dataclass(frozen=True)
class Choices:
    """``batch`` None: as `defaults` says. ``flash_attention`` None: as `Planner.context` says. ``small_windows``:
    layers with a sliding window keep the window's tokens only. Raises UsageError."""

    kv_type: str = "f16"
    batch: int | None = None
    flash_attention: bool | None = None
    small_windows: bool = False

    def __post_init__(self) -> None:
        if self.batch is not None and not 1 <= self.batch <= LONGEST:
            raise UsageError(f"the batch is {self.batch}, but must be from 1 to {LONGEST} tokens")


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
class Planner:
    """What a model takes with such choices. ``gpu_layers``: how many are on a GPU, the output counted as one more."""

    header: GgufFile
    arch: Architecture
    choices: Choices
    gpu_layers: int

    def context(self, tokens: int, free: Memories) -> Context:
        """A context of so many tokens. Raises UsageError for choices that llama.cpp refuses.

        Flash attention, where nobody chose: on a GPU, where a quantized cache needs it, and where `free` holds the
        context in no other way; else a CPU is faster without it (`benchmarks/results/generate.md`).
        """
        flash = True if self._needs_flash_attention else self.choices.flash_attention
        context = Context(tokens, self._batch, self.choices.kv_type, bool(flash), not self.choices.small_windows)
        if flash is None and free.hold(*self.shares(context)) is False:
            return replace(context, flash_attention=True)
        return context

    @property
    def _needs_flash_attention(self) -> bool:
        nobody_chose = self.choices.flash_attention is None
        return nobody_chose and (self.gpu_layers > 0 or is_quantized(self.choices.kv_type))

    @cached_property
    def _batch(self) -> int:
        tensors = self.header.tensors
        return self.choices.batch or defaults.batch(tensors, defaults.threads(tensors), on_gpu=self.gpu_layers > 0)

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

    def automatic(self, free: Memories) -> int | None:
        """Tokens that a context gets where nobody says: what the file is made for, or what fits. Less is then taken
        without flash attention where that is possible: a few tokens fewer, and much faster."""
        if free.hold(*self.shares(self.context(self.arch.context, free))) is not False:
            return self.arch.context
        if self.choices.flash_attention is None and not self._needs_flash_attention:
            without = replace(self, choices=replace(self.choices, flash_attention=False))
            return without.largest(free) or self.largest(free)
        return self.largest(free)

    def largest(self, free: Memories) -> int | None:
        """Tokens of the largest context that fits, a multiple of 256; 0: none does, None: not known."""

        def too_large(steps: int) -> bool:
            return not free.hold(*self.shares(self.context(steps * STEP, free)))

        if free.hold(*self.shares(self.context(STEP, free))) is None:
            return None
        return bisect_left(range(1, LONGEST // STEP + 1), True, key=too_large) * STEP


def _layer_of(name: str) -> int | None:
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else None
