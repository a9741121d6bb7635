"""What a run comes to, before a weight is loaded: shapes, tokens, memory; and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.checkpoint.named import named_model
from ggext.checkpoint.quantized import is_plain, packed_by
from ggext.checkpoint.weights import read_tensors
from ggext.convert.model_source import ModelSource
from ggext.convert.request import resolve_scaling
from ggext.convert.sources import open_source
from ggext.errors import CheckpointError, UsageError
from ggext.footprint.machine import free_memory
from ggext.tune.loss import BLOCK_LOGITS
from ggext.tune.options import TuneOptions
from ggext.tune.rows import RowOptions
from ggext.tune.tables import WantedRope

if TYPE_CHECKING:
    from ggext.checkpoint.safetensors import CheckpointTensor
    from ggext.rope.scaling import RopeScaling
    from ggext.tune.machine import Machine

#: Tokens that are evaluated at once where rows are short.
_AT_ONCE = 8192
_ROWS_A_STEP = 4
#: transformers has a parameter for another attention factor in these methods alone.
_WITH_GAIN = ("yarn",)
#: Copies of a block of logits: in float32, their logarithms, and the gradients of both.
_LOGITS_COPIES = 5
#: Bytes of a process before it has a model: Python, torch, transformers.
PROGRAMS = 1 << 29
_FLOAT = 4
_OUTSIDE = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight")


@dataclass(frozen=True)
class Stage:
    """One run of the trainer."""

    rope: WantedRope
    steps: int


@dataclass(frozen=True)
class TunePlan:
    """What a run will train, and what that takes."""

    # The checkpoint.
    folder: Path
    # The final one.
    rope: WantedRope
    stages: tuple[Stage, ...]
    rows: RowOptions
    # Micro-batches of each process for one step.
    accumulation: int
    # Numbers in the checkpoint, and those that are trained.
    parameters: int
    trained: int
    # Bytes that training needs in each process, about.
    memory: int
    # Lines for the user.
    notes: tuple[str, ...]

    @property
    def step_tokens(self) -> int:
        """Tokens of a step in each process, about."""
        return (
            self.accumulation
            * self.rows.count(self.rows.kind)
            * self.rows.length(self.rows.kind)
        )


def planned(options: TuneOptions, machine: Machine) -> TunePlan:
    """Raises a ``GgextError`` for what cannot be trained, by the headers alone."""
    folder = named_model(options.model)
    tensors = _trainable(folder)
    source = open_source(folder, replaced=True)
    rope, of_rope = _rope(options, source)
    notes = [*source.notes, *of_rope]
    kind = options.rows or ("pose" if rope.context > 2 * rope.trained else "long")
    window = min(options.window or rope.trained, rope.context)
    length = rope.context if kind == "long" else window
    batch = options.batch_tokens or max(_AT_ONCE, _ROWS_A_STEP * length)
    at_once = min(_AT_ONCE, batch // machine.processes)
    rows = RowOptions(kind, window, rope.context, at_once, seed=options.seed)
    micro = rows.count(kind) * rows.length(kind) * machine.processes
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    trained = parameters
    if options.lora is not None:
        trained = lora_size(
            (tensor.shape for tensor in _linears(tensors)), options.lora
        )
    plan = TunePlan(
        folder,
        rope,
        _stages(options, rope),
        rows,
        max(1, round(batch / micro)),
        parameters,
        trained,
        0,
        tuple(notes),
    )
    vocabulary = max((t.shape[0] for t in _embeddings(tensors)), default=BLOCK_LOGITS)
    memory = _memory(plan, source, vocabulary, options, machine)
    plan = replace(plan, memory=memory)
    _check_memory(plan, machine)
    return plan


def _trainable(folder: Path) -> dict[str, CheckpointTensor]:
    """The tensors of a checkpoint of plain floats."""
    if folder.suffix == ".gguf" and not folder.is_dir():
        raise CheckpointError(
            f"{folder} is a GGUF file, whose weights cannot be trained; make a checkpoint of it: "
            f"ggext export {folder} {folder.stem}"
        )
    if not (folder / "config.json").is_file():
        open_source(folder)  # says what it is
    tensors = read_tensors(folder)
    if not is_plain(tensors.values()):
        packed = packed_by(tensors)
        by = f" by {packed[0]}" if packed else ""
        raise CheckpointError(
            f"{folder} is quantized{by}, and such weights cannot be trained; take the unquantized "
            "checkpoint that it was made from"
        )
    return tensors


def _rope(
    options: TuneOptions, source: ModelSource
) -> tuple[WantedRope, tuple[str, ...]]:
    """The request in full, and notes on it. Raises UsageError where it contradicts the
    checkpoint."""
    option = options.scaling
    if option.attention_factor is not None and option.method not in _WITH_GAIN:
        raise UsageError(
            f"transformers knows no attention factor for {option.method}, so it cannot be trained "
            "with one; leave it out, or choose yarn"
        )
    request = resolve_scaling(option, options.target_context, source, keeps_own=False)
    scaling = request.scaling
    assert scaling is not None  # a checkpoint always has one
    rope = WantedRope(scaling, source.geometry)
    rope = replace(
        rope, geometry=replace(source.geometry, trained_context=rope.trained)
    )
    if scaling.method == "none" or rope.context <= rope.trained:
        raise UsageError(
            f"{source.path} reaches {rope.trained:,} tokens as it is, and no more is asked for: "
            "name a factor above 1, such as --yarn 4"
        )
    _check_extends(source, rope)
    return rope, request.notes


def _check_extends(source: ModelSource, rope: WantedRope) -> None:
    own = source.scaling
    if own is None or own.method == "none" or source.problem:
        return
    reach = WantedRope(own, source.geometry).context
    if reach >= rope.context:
        raise UsageError(
            f"{source.path} says that it reaches {reach:,} tokens already ({own.method} by "
            f"{own.factor:g}), and {rope.scaling.method} by {rope.scaling.factor:g} from "
            f"{rope.trained:,} makes {rope.context:,}: ask for more than it has"
        )


def _stages(options: TuneOptions, rope: WantedRope) -> tuple[Stage, ...]:
    """Each factor from the pretrained length, whatever the stage before it had."""
    factor = rope.scaling.factor or 1.0
    factors = list(options.stages) or [factor]
    if factors[-1] != factor:
        raise UsageError(
            f"the last stage has the factor {factors[-1]:g}, and {factor:g} is asked for: the "
            "stages end with it"
        )
    share, rest = divmod(options.steps, len(factors))
    return tuple(
        Stage(WantedRope(_by(rope.scaling, value), rope.geometry), share + (i < rest))
        for i, value in enumerate(factors)
    )


def _by(scaling: RopeScaling, factor: float) -> RopeScaling:
    if factor == scaling.factor:
        return scaling
    return replace(scaling, factor=factor, context=None, context_reason=None)


def _linears(tensors: Mapping[str, CheckpointTensor]) -> Iterator[CheckpointTensor]:
    """Those that PEFT's all-linear adapts: every matrix but the embedding and the output."""
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and not name.endswith(_OUTSIDE):
            yield tensor


def _embeddings(tensors: Mapping[str, CheckpointTensor]) -> Iterator[CheckpointTensor]:
    """The others: a row for each token of the vocabulary."""
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and name.endswith(_OUTSIDE):
            yield tensor


def lora_size(shapes: Iterable[tuple[int, ...]], rank: int) -> int:
    """Numbers in the two factors of each matrix: rank · (rows + columns)."""
    return sum(rank * sum(shape) for shape in shapes)


def _memory(
    plan: TunePlan,
    source: ModelSource,
    vocabulary: int,
    options: TuneOptions,
    machine: Machine,
) -> int:
    """Bytes: weights, gradients and Adam's two moments in float32, what is kept for the way back,
    and a block of logits. With checkpoints that is a layer's input for each, and all of one layer.

    A layer of Llama keeps 4 · feed-forward + 8 to 9 · hidden numbers a token.
    """
    keys = {key.split(".", 1)[1]: field.value for key, field in source.fields.items()}
    layers = int(keys["block_count"])
    hidden = int(keys["embedding_length"])
    feed_forward = keys["feed_forward_length"]
    wide = max(feed_forward) if isinstance(feed_forward, list) else int(feed_forward)
    weights = plan.parameters * (
        2 if machine.bf16 and options.lora is not None else _FLOAT
    )
    states = plan.trained * 3 * _FLOAT
    tokens = max(
        plan.rows.count(kind) * plan.rows.length(kind)
        for kind in ("short", plan.rows.kind)
    )
    inside = tokens * (10 * hidden + 4 * wide) * _FLOAT
    kept = tokens * hidden * layers * _FLOAT
    if not options.gradient_checkpointing:
        kept = 0
        inside = inside * layers
    logits = min(BLOCK_LOGITS, tokens * vocabulary) * _FLOAT * _LOGITS_COPIES
    fixed = PROGRAMS + (weights + states) // machine.shards
    return fixed + kept + inside + logits


def _check_memory(plan: TunePlan, machine: Machine) -> None:
    available = machine.memory if machine.memory is not None else free_memory()
    if available is None or plan.memory <= available:
        return
    raise UsageError(
        f"training {plan.folder} needs about {plan.memory / 2**30:.1f} GiB, and {machine.name} has "
        f"{available / 2**30:.1f} GiB free: train an adapter (LoRA) in place of all weights, rows "
        "with jumps (PoSE) in place of long ones, or a smaller window"
    )
