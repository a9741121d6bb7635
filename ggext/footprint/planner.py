"""The parts added up, for RAM and for the memory of a GPU, and the largest context that a machine holds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

from ggext.errors import UsageError
from ggext.footprint import defaults
from ggext.footprint.architecture import Architecture
from ggext.footprint.cache import (
    STEP,
    Context,
    Swa,
    cache_bytes,
    check_swa,
    checkpoint_bytes,
    is_quantized,
    whole_windows,
)
from ggext.footprint.graph import compute_bytes, input_bytes
from ggext.gguf.reader import GgufFile

LONGEST = 1 << 26  # tokens; beyond it no search goes
_HEADROOM = 0.95  # of what is free; the rest is for threads' buffers and for what others begin to use


@dataclass(frozen=True)
class Choices:
    """``batch`` and ``flash_attention`` None: as `defaults` says. ``swa``: what layers with a sliding window keep.
    Raises UsageError."""

    kv_type: str = "f16"
    batch: int | None = None
    flash_attention: bool | None = None
    swa: Swa = "auto"

    def __post_init__(self) -> None:
        check_swa(self.swa)
        if self.batch is not None and not 1 <= self.batch <= LONGEST:
            raise UsageError(f"the batch is {self.batch}, but must be from 1 to {LONGEST} tokens")


@dataclass(frozen=True)
class Share:
    """Bytes in one memory. ``output``: the logits that the program reads. ``checkpoints``: ggext's own copies of small
    windows; the rest is llama.cpp's."""

    weights: int = 0
    cache: int = 0
    compute: int = 0
    output: int = 0
    checkpoints: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute + self.output + self.checkpoints


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

    def context(self, tokens: int) -> Context:
        """A context of so many tokens. Raises UsageError for choices that llama.cpp refuses."""
        on_gpu, kv_type = self.gpu_layers > 0, self.choices.kv_type
        batch = self._batch
        flash = self.choices.flash_attention
        if flash is None:
            heads = max(layer.heads for layer in self.arch.layers)
            flash = defaults.flash_attention(heads, tokens, batch, on_gpu=on_gpu, quantized=is_quantized(kv_type))
        whole = whole_windows(self.choices.swa, self.arch.window, tokens, min(batch, tokens))
        return Context(tokens, batch, kv_type, flash, whole)

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
        beside = input_bytes(self.arch, context) if self.gpu_layers and first == 0 else compute
        ram = Share(in_ram, sum(caches[:first]), beside, output, checkpoint_bytes(self.arch, context))
        return ram, Share(on_gpu, sum(caches[first:]), compute) if self.gpu_layers else Share()

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

        def too_large(steps: int, planner: Planner) -> bool:
            return not free.hold(*planner.shares(planner.context(steps * STEP)))

        if free.hold(*self.shares(self.context(STEP))) is None:
            return None

        # where flash attention or small windows begin by themselves, the need falls: so what is beyond is searched too
        flash = (None, True) if self.choices.flash_attention is None else (self.choices.flash_attention,)
        swa: tuple[Swa, ...] = ("auto", "small") if self.choices.swa == "auto" else (self.choices.swa,)
        choices = [replace(self.choices, flash_attention=f, swa=s) for f in flash for s in swa]
        planners = [replace(self, choices=choice) for choice in choices]
        found = [_last_before(partial(too_large, planner=planner), LONGEST // STEP) for planner in planners]
        return max((steps for steps in found if steps and not too_large(steps, self)), default=0) * STEP


def _last_before(too_large: Callable[[int], bool], most: int) -> int:
    """The last number from 1 to `most` for which the answer is no, 0 without one; the answer turns once."""
    return bisect_left(range(1, most + 1), True, key=too_large)


def _layer_of(name: str) -> int | None:
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else None
