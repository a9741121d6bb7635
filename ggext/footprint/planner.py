"""The parts added up, for RAM and for the memory of a GPU, and the largest context that a machine
holds."""

from __future__ import annotations

from bisect import bisect_left
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
from ggext.llama_cpp_facts.compressed import COMPRESSED
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.llama_cpp_facts.sliding import must_be_whole

LONGEST = 1 << 26  # tokens; beyond it no search goes
#: Share of what is free; the rest is for threads' buffers and for what others begin to use.
_HEADROOM = 0.95
#: Bytes that the scores and logits of a batch may take for being larger than need be.
_ROWS = 1 << 28


@dataclass(frozen=True)
class Choices:
    """What a user chose of a context. Raises UsageError."""

    kv_type: str = "f16"
    # Tokens evaluated at a time; None: as `Planner.context` says.
    batch: int | None = None
    # None: as `Planner.context` says.
    flash_attention: bool | None = None
    # What layers with a sliding window keep.
    swa: Swa = "auto"
    # None: as `defaults` says.
    threads: int | None = None
    # Whether a policy moves cells, through a second sequence.
    moves: bool = False

    @property
    def sequences(self) -> int:
        return 2 if self.moves else 1

    def __post_init__(self) -> None:
        check_swa(self.swa)
        if self.batch is not None and not 1 <= self.batch <= LONGEST:
            raise UsageError(
                f"the batch is {self.batch}, but must be from 1 to {LONGEST} tokens"
            )


@dataclass(frozen=True)
class Share:
    """Bytes in one memory. ``output``: the logits that the program reads. ``checkpoints``: ggext's
    own copies of small windows; the rest is llama.cpp's."""

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
    """What a model takes with such choices. ``gpu_layers``: how many are on a GPU, the output
    counted as one more."""

    header: GgufFile
    arch: Architecture
    choices: Choices
    gpu_layers: int
    # On a CPU, tokens of the longest context that is read faster with flash attention
    # (`ggext.footprint.speeds`).
    flash_until: int = 0

    def context(self, tokens: int, free: Memories) -> Context:
        """A context of so many tokens. Raises UsageError for choices that llama.cpp refuses.

        Flash attention, where nothing was chosen: on a GPU, where a quantized cache needs it, where
        it was measured to be faster on this processor, and where `free` holds the context in no
        other way; else a CPU is faster without it (`benchmarks/results/generate.md`)."""
        return self._larger(self._least(tokens, free), free)

    def _least(self, tokens: int, free: Memories) -> Context:
        """`context` with the fewest tokens at once."""
        flash = self.choices.flash_attention
        if flash is False and self.arch.name in IN_BLOCKS:
            raise UsageError(
                f"{self.header.path} attends to blocks of the text that it chooses, which "
                "llama.cpp does with flash attention alone: leave it to ggext"
            )
        if self._needs_flash_attention or (
            flash is None and tokens <= self.flash_until
        ):
            flash = True
        sequences = self.choices.sequences
        batch = min(self._batch, tokens)
        whole = whole_windows(self._swa, self.arch.window, tokens, batch, sequences)
        kind = self.choices.kv_type
        context = Context(tokens, self._batch, kind, bool(flash), whole, sequences)
        if flash is None and free.hold(*self.shares(context)) is False:
            return replace(context, flash_attention=True)
        return context

    @property
    def _swa(self) -> Swa:
        """Without a choice small where a text cannot be cut back to more cells, and full where
        small windows cannot follow what moves."""
        if self.choices.swa != "auto":
            return self.choices.swa
        if self.arch.name in COMPRESSED:
            return "small"
        slides = [layer.slides for layer in self.arch.layers]
        whole = self.choices.moves and must_be_whole(self.arch.name, slides)
        return "full" if whole else "auto"

    def _larger(self, context: Context, free: Memories) -> Context:
        """With more tokens at once, where nothing was chosen, no operation is long then, and the
        memory for the scores and the logits of a batch is little."""
        if self.choices.batch or self.gpu_layers or self.arch.window:
            return context
        heads = max((layer.heads for layer in self.arch.layers), default=0)
        scores = 0 if context.flash_attention else heads * context.cells
        if self.arch.name in IN_BLOCKS:  # a mask for each head, which is turned round
            heads = self.arch.keys["attention.indexer.head_count"]
            scores = 2 * heads * context.cells
        row = 4 * (scores + self.arch.vocabulary)
        for batch in defaults.larger_batches(self.header.tensors, self._threads):
            larger = replace(context, batch=batch)
            if (
                batch > context.batch
                and batch * row <= _ROWS
                and free.hold(*self.shares(larger)) is not False
            ):
                return larger
        return context

    @property
    def _needs_flash_attention(self) -> bool:
        nobody_chose = self.choices.flash_attention is None
        return nobody_chose and (
            self.gpu_layers > 0
            or is_quantized(self.choices.kv_type)
            or self.arch.name in IN_BLOCKS
        )

    @cached_property
    def _batch(self) -> int:
        return self.choices.batch or defaults.batch(
            self.header.tensors, self._threads, on_gpu=self.gpu_layers > 0
        )

    @cached_property
    def _threads(self) -> int:
        return self.choices.threads or defaults.threads(self.header.tensors)

    @cached_property
    def _compute_bytes(self) -> dict[Context, int]:
        """Those that were computed: a choice asks for the same ones several times."""
        return {}

    def shares(self, context: Context) -> tuple[Share, Share]:
        """What lies in RAM, and what on the GPU."""
        caches = cache_bytes(self.arch, context)
        first = self._first_on_gpu
        on_gpu, in_ram = self._weights()
        compute = self._compute_bytes.get(context)
        if compute is None:
            compute = self._compute_bytes[context] = compute_bytes(self.arch, context)
        output = 4 * self.arch.vocabulary * context.sequences
        beside = (
            input_bytes(self.arch, context)
            if self.gpu_layers and first == 0
            else compute
        )
        ram = Share(
            in_ram,
            sum(caches[:first]),
            beside,
            output,
            checkpoint_bytes(self.arch, context),
        )
        return ram, Share(
            on_gpu, sum(caches[first:]), compute
        ) if self.gpu_layers else Share()

    @property
    def _first_on_gpu(self) -> int:
        """llama.cpp puts the last layers there, and counts the output as one more."""
        return max(len(self.arch.layers) + 1 - self.gpu_layers, 0)

    def _weights(self) -> tuple[int, int]:
        """Bytes on the GPU, and in RAM. The embedding stays in RAM; where it is the output too, the
        GPU has a copy."""
        layers = len(self.arch.layers)
        first = self._first_on_gpu
        on_gpu = in_ram = 0
        for name, info in self.header.tensors.items():
            layer = _layer_of(name)
            if layer is not None and layer >= layers:
                continue  # a layer for speculation, which is not loaded
            output = name.startswith("output") or (
                name == "token_embd.weight" and not self.arch.has("output.weight")
            )
            there = bool(self.gpu_layers) and (
                layer >= first if layer is not None else output
            )
            on_gpu += info.nbytes * there
            in_ram += info.nbytes * (not there or name == "token_embd.weight")
        return on_gpu, in_ram

    def automatic(self, free: Memories) -> int | None:
        """Tokens that a context gets where nothing is said: what the file is made for, or what
        fits. Less is then taken without flash attention where that is possible: a few tokens fewer,
        and much faster."""
        if free.hold(*self.shares(self._least(self.arch.context, free))) is not False:
            return self.arch.context
        if self.choices.flash_attention is None and not self._needs_flash_attention:
            without = replace(
                self, choices=replace(self.choices, flash_attention=False)
            )
            return without.largest(free) or self.largest(free)
        return self.largest(free)

    def largest(self, free: Memories) -> int | None:
        """Tokens of the largest context that fits, a multiple of 256; 0: none does, None: not
        known."""

        def too_large(steps: int, planner: Planner) -> bool:
            return not free.hold(*planner.shares(planner._least(steps * STEP, free)))

        if free.hold(*self.shares(self._least(STEP, free))) is None:
            return None

        # where small windows begin by themselves, the need falls: so what is beyond is searched too
        swa: tuple[Swa, ...] = (
            ("auto", "small") if self._swa == "auto" else (self._swa,)
        )
        planners = [
            replace(self, choices=replace(self.choices, swa=kept)) for kept in swa
        ]
        steps = range(1, LONGEST // STEP + 1)
        counts = [
            bisect_left(steps, True, key=partial(too_large, planner=planner))
            for planner in planners
        ]
        return (
            max(
                (count for count in counts if count and not too_large(count, self)),
                default=0,
            )
            * STEP
        )


def _layer_of(name: str) -> int | None:
    parts = name.split(".", 2)
    return (
        int(parts[1])
        if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal()
        else None
    )
