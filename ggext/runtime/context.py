"""A llama.cpp context: how long, how many threads, which attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggext.arguments import check_count, check_fields
from ggext.errors import ModelError, UsageError
from ggext.footprint.cache import (
    BLOCK,
    KV_TYPES,
    STEP,
    Context,
    Swa,
    check_swa,
    is_quantized,
    whole_windows,
)
from ggext.footprint.planner import Choices
from ggext.llama_cpp_facts.compressed import COMPRESSED
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.llama_cpp_facts.sliding import must_be_whole
from ggext.rope.capabilities import LEARNED_POSITIONS
from ggext.rope.keys import context_parameters
from ggext.runtime import capacity, llama
from ggext.runtime.adapter import attach
from ggext.runtime.batches import LEAST, LEAST_FLASH, Batches, attention
from ggext.runtime.capacity import Room
from ggext.runtime.layers import windowed_layers
from ggext.runtime.memory.options import MemoryOptions
from ggext.runtime.model import Model
from ggext.runtime.regimes import DynamicNtk, Regime, regimes
from ggext.runtime.threads import ThreadCounts, thread_counts


@dataclass(frozen=True)
class SessionOptions:
    """How a context is made. Raises UsageError."""

    # Tokens; None is what the file says, or what fits into the free memory.
    n_ctx: int | None = None
    # None: the physical cores, 1 for a tiny model.
    threads: int | None = None
    # Tokens evaluated at a time; None: 512 on a GPU, else 64 to 256, and after many down to 16.
    n_batch: int | None = None
    # Of keys and values: f16, bf16, f32, q8_0, q4_0 ...
    kv_type: str = "f16"
    # None: as `ggext.footprint.planner.Planner.context` says.
    flash_attention: bool | None = None
    # What stays when the context is full.
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    # The base grows with the length of the text, and what is cached is rotated to it or evaluated
    # again.
    dynamic_ntk: DynamicNtk | None = None
    # Sees every node of the graph (a ggml_backend_sched_eval_callback).
    eval_callback: Any = None
    # What layers with a sliding window keep: "full", every token; "small", the window and a batch;
    # "auto", what takes less memory.
    swa: Swa = "auto"
    # Without `n_ctx`, half of the free memory is left to others.
    leaves_memory: bool = False
    # A LoRA adapter in GGUF, which must be for this file.
    adapter: Path | None = None

    @property
    def edits_cache(self) -> bool:
        """Whether cells are taken out of the cache and put back."""
        return (
            self.memory.when_full not in ("stop", "recompute")
            or self.dynamic_ntk == "rotate"
        )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("n_ctx", "threads", "n_batch"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
        if (
            self.n_ctx == 1 and self.edits_cache
        ):  # it has two sequences, which ends the process
            raise UsageError(
                f"{self.memory.when_full} moves cells, which needs a context of 2 tokens, not 1"
            )
        if self.kv_type not in KV_TYPES:
            known = ", ".join(KV_TYPES)
            raise UsageError(f"kv_type is {self.kv_type!r}, but must be one of {known}")
        check_swa(self.swa)
        if self.dynamic_ntk not in (None, "rotate", "replay"):
            raise UsageError(
                f"dynamic NTK is {self.dynamic_ntk!r}, but must be rotate or replay"
            )
        if self.dynamic_ntk and self.memory.when_full != "stop":
            raise UsageError(
                "dynamic NTK keeps everything and cannot go with "
                f"when_full={self.memory.when_full!r}"
            )
        if self.dynamic_ntk == "rotate" and is_quantized(self.kv_type):
            raise UsageError(
                f"keys of kv type {self.kv_type} cannot be rotated exactly: take f16, or replay"
            )
        if self.flash_attention is False and is_quantized(self.kv_type):
            raise UsageError(
                f"kv_type {self.kv_type} needs flash attention, which is switched off: llama.cpp "
                "reads quantized "
                "values in no other way; leave flash attention to ggext, or take f16"
            )


@dataclass(frozen=True)
class Plan:
    """What a session's context is made with."""

    # tokens that it holds
    n_ctx: int
    # how a text is fed into it
    batches: Batches
    threads: ThreadCounts
    flash_attention: bool
    # whether sliding windows keep every token
    whole_windows: bool
    # what its text passes through as it grows
    regimes: tuple[Regime, ...]
    # what the user should know of it
    notices: tuple[str, ...]


def plan_context(model: Model, options: SessionOptions) -> Plan:
    """Raises ModelError when the memory does not suffice, or the model's heads do not fit the type
    of the cache."""
    _check_heads(model, options.kv_type)
    _check_graph(model, options.kv_type)
    _check_blocks(model, options)
    if options.dynamic_ntk == "rotate" and model.n_swa:
        raise ModelError(
            f"{model.path} has layers with a sliding window, whose keys are not rotated: take "
            "replay"
        )
    if options.dynamic_ntk == "rotate" and model.is_recurrent:
        raise ModelError(
            f"{model.path} has recurrent layers, whose state cannot be rotated: take replay"
        )
    threads = options.threads or capacity.threads_for(model)
    choices = Choices(
        options.kv_type,
        options.n_batch,
        options.flash_attention,
        options.swa,
        threads,
        options.edits_cache,
    )
    room = capacity.room(model, choices)
    n_ctx, notices = _length(model, options, room)
    n_batch = options.n_batch or (
        capacity.batch_for(model, threads)
        if room is None
        else room.context(n_ctx).batch
    )
    n_batch = min(n_batch, n_ctx)
    flash = _flash_attention(model, options, room, n_ctx)
    whole, more = _whole_windows(model, options, n_ctx, n_batch, choices.sequences)
    context = Context(n_ctx, n_batch, options.kv_type, flash, whole, choices.sequences)
    return Plan(
        n_ctx,
        _batches(options, threads, room, context),
        thread_counts(options.threads, threads, flash, model.loading_began),
        flash,
        whole,
        regimes(model, n_ctx, options.dynamic_ntk),
        (*notices, *more),
    )


def open_context(
    model: Model,
    options: SessionOptions,
    plan: Plan,
    regime: Regime,
    abort: tuple[Any, int],
) -> Any:
    """Makes llama.cpp's context of one regime, which the caller frees. RoPE is as the file says,
    but for the regime.

    `abort`: an abort callback and the address that it reads. Raises ModelError when llama.cpp
    cannot, or the model keeps no tokens.
    """
    module = llama.lib()
    params = module.llama_context_default_params()
    for name, value in context_parameters(model.header.arch_keys()).items():
        setattr(params, name, value)
    if regime.freq_base is not None:
        params.rope_freq_base = regime.freq_base
    params.n_ctx = regime.span
    params.n_threads = plan.threads.for_one
    params.n_threads_batch = plan.threads.now
    params.type_k = params.type_v = KV_TYPES[options.kv_type]
    params.flash_attn_type = _flash_attention_type(module, model, options, plan)
    params.swa_full = plan.whole_windows
    if options.edits_cache:
        params.n_seq_max, params.kv_unified = (
            2,
            True,
        )  # a second sequence to take cells out by
    # A batch that is smaller than the number of sequences ends the process.
    params.n_batch = params.n_ubatch = max(plan.batches.most, params.n_seq_max)
    params.abort_callback, params.abort_callback_data = abort
    if options.eval_callback is not None:
        params.cb_eval = options.eval_callback
    llama.clear_log()
    handle = module.llama_init_from_model(model.open_handle(), params)
    if not handle:
        raise llama.failure(
            f"a context of {regime.span} tokens cannot be made (try a smaller one)"
        )
    if not module.llama_get_memory(handle):
        module.llama_free(handle)
        raise ModelError(
            f"{model.path} ({model.architecture}) is not a model that continues text"
        )
    if options.adapter is not None:
        try:
            attach(options.adapter, model, handle)
        except BaseException:
            module.llama_free(handle)
            raise
    return handle


def _whole_windows(
    model: Model, options: SessionOptions, n_ctx: int, n_batch: int, sequences: int
) -> tuple[bool, list[str]]:
    """Whether sliding windows keep every token, and what the user should know of it. Raises
    ModelError where they would not and must."""
    swa = options.swa
    if model.architecture in COMPRESSED:  # a text cannot be cut back to more cells
        return swa == "full", []
    whole = whole_windows(swa, model.n_swa, n_ctx, n_batch, sequences)
    if whole or not options.edits_cache:
        return whole, []
    policy = options.memory.when_full
    why = must_be_whole(model.architecture, windowed_layers(model.header))
    if why is None:
        return False, []
    if swa == "small":
        raise ModelError(
            f"{model.path}: when_full={policy!r} moves cached keys, and small windows that {why} "
            "cannot follow them: take swa full or auto; recompute works with both"
        )
    notice = (
        "layers with a sliding window keep every token of the context, for "
        f"{policy} moves cells, and small windows that {why} cannot follow"
    )
    return True, [notice]


def _batches(
    options: SessionOptions, threads: int, room: Room | None, context: Context
) -> Batches:
    """Fewer at once after many tokens, where nothing was chosen."""
    if options.n_batch or room is None:
        return Batches(context.batch)
    least = LEAST_FLASH if context.flash_attention else LEAST
    return Batches(context.batch, threads, attention(room.planner.arch, context), least)


def _check_heads(model: Model, kv_type: str) -> None:
    """llama.cpp says this only in its log, after reading the whole file."""
    block = BLOCK if is_quantized(kv_type) else 1
    for name, size in zip(("key", "value"), capacity.head_sizes(model), strict=True):
        if size % block:
            raise ModelError(
                f"{model.path} has {name} heads of {size} values, which the blocks of {block} of "
                f"kv type {kv_type} do "
                "not divide: take f16"
            )


def _check_graph(model: Model, kv_type: str) -> None:
    """llama.cpp ends the process where a graph has more tensors than it reckons with, 8 for each of
    the file. Of the architectures that ggext converts only Granite's experts come to that (57 nodes
    a layer and 2 for each expert that is asked, counted in its log; its table holds the weights and
    the cache as well)."""
    if model.architecture != "granitemoe" or not is_quantized(kv_type):
        return
    keys = model.header.arch_keys()
    weights = len(model.all_parts.tensors)
    layers = int(keys.get("block_count", 0))
    experts = int(keys.get("expert_used_count", 0))
    if layers * (57 + 2 * experts + 2) + 16 + weights > max(1024, 8 * weights):
        raise ModelError(
            f"{model.path} with kv type {kv_type} makes a graph of more nodes than llama.cpp has "
            "room for, which ends "
            "the program: take f16"
        )


def _check_blocks(model: Model, options: SessionOptions) -> None:
    """llama.cpp would attend to everything, which is another model."""
    if model.architecture not in IN_BLOCKS:
        return
    chosen = f"{model.path} attends to blocks of the text that it chooses, which"
    if options.flash_attention is False:
        raise ModelError(
            f"{chosen} llama.cpp does with flash attention alone: leave it to ggext"
        )
    if options.edits_cache:
        name: str = options.memory.when_full
        if options.dynamic_ntk:
            name = f"dynamic_ntk={options.dynamic_ntk}"
        raise ModelError(
            f"{chosen} llama.cpp does not do in a cache that is edited ({name}): take stop or "
            "recompute"
        )


def _length(
    model: Model, options: SessionOptions, room: Room | None
) -> tuple[int, list[str]]:
    trained = model.n_ctx_train
    n_cells = options.memory.cells(options.n_ctx or trained)
    if n_cells > trained and model.architecture in LEARNED_POSITIONS:
        raise ModelError(
            f"{model.path} has learned positions for {trained:,} tokens, and the context is "
            f"{n_cells:,}: take no more than it has"
        )
    half = (
        room.half()
        if room is not None and options.leaves_memory and options.n_ctx is None
        else 0
    )
    if STEP <= half < n_cells:
        made = (
            f"of the {trained:,} that the file is made for: more would take over half of the "
            "free memory"
        )
        return half, [
            f"the context is {half:,} tokens {made}; context='auto' takes what fits"
        ]
    if room is not None and not room.holds(n_cells):
        size = room.needed(n_cells) / 2**30
        largest = room.largest()
        holds = room.most() if options.n_ctx is not None else largest
        short = (
            f"a context of {n_cells:,} tokens needs {size:.1f} GiB, the free memory holds "
            f"{holds:,} tokens"
        )
        if options.n_ctx is not None or largest < STEP:
            raise ModelError(f"{short}: ask for a smaller context, or free some memory")
        return largest, [f"{short}: the context is {largest:,} tokens"]
    if (
        n_cells > trained
        and options.memory.when_full != "self-extend"
        and options.dynamic_ntk is None
    ):
        notice = (
            f"the context of {n_cells} tokens is longer than the {trained} that the file is made "
            "for: what stands past those will be misread; bake a longer one with ggext convert"
        )
        return n_cells, [notice]
    return n_cells, []


def _flash_attention(
    model: Model, options: SessionOptions, room: Room | None, n_ctx: int
) -> bool:
    if options.flash_attention is not None:
        return options.flash_attention
    if model.architecture in IN_BLOCKS:
        return True
    return (
        model.offloads or is_quantized(options.kv_type)
        if room is None
        else room.context(n_ctx).flash_attention
    )


def _flash_attention_type(
    module: Any, model: Model, options: SessionOptions, plan: Plan
) -> int:
    """Where nothing needs it, llama.cpp may do without on a device that cannot."""
    needed = options.flash_attention or is_quantized(options.kv_type)
    needed = needed or model.architecture in IN_BLOCKS
    name = ("ENABLED" if needed else "AUTO") if plan.flash_attention else "DISABLED"
    return int(getattr(module, f"LLAMA_FLASH_ATTN_TYPE_{name}"))
