"""The KV cache: how many cells each layer has, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ggext.errors import UsageError
from ggext.footprint.architecture import Architecture, Layer
from ggext.gguf.types import tensor_nbytes
from ggext.llama_cpp_facts.compressed import ALL, CHOSEN

#: llama.cpp rounds the context, by which it picks LongRoPE's table, and a window's cache up to a
#: multiple of this.
STEP = 256
#: What llama.cpp's command line offers for the cache, as ggml type numbers.
KV_TYPES = {
    "f16": 1,
    "bf16": 30,
    "f32": 0,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 20,
}
BLOCK = 32  # values that a quantized type stores together
#: What layers with a sliding window keep: every token, the window and a batch, or whichever is less
#: memory.
Swa = Literal["auto", "full", "small"]
#: Copies of the windows' cells that the engine keeps next to a small cache, so that a text can be
#: cut back.
CHECKPOINTS = 6
_WHOLE_VALUES = ("f16", "bf16", "f32")


@dataclass(frozen=True)
class Context:
    """What a context is made with. Raises UsageError for a value that llama.cpp refuses."""

    # Its length.
    tokens: int
    # Tokens evaluated at a time.
    batch: int
    # Of keys and values.
    kv_type: str = "f16"
    flash_attention: bool = False
    # Whether sliding windows get a cell for every token.
    whole_windows: bool = False
    sequences: int = 1

    def __post_init__(self) -> None:
        if self.kv_type not in KV_TYPES:
            raise UsageError(
                f"kv type {self.kv_type!r} is unknown; choose one of {', '.join(KV_TYPES)}"
            )
        if is_quantized(self.kv_type) and not self.flash_attention:
            raise UsageError(
                f"kv type {self.kv_type} needs flash attention, which is switched off: llama.cpp "
                "reads quantized "
                "values in no other way"
            )

    @property
    def cells(self) -> int:
        """The length as llama.cpp makes it: a multiple of 256."""
        return _padded(self.tokens)

    @property
    def ubatch(self) -> int:
        return min(self.batch, self.tokens)


def is_quantized(kv_type: str) -> bool:
    """Whether the type stores blocks of 32 values, and so needs flash attention for values."""
    return kv_type not in _WHOLE_VALUES


def check_swa(swa: str) -> None:
    """Raises UsageError for what layers with a sliding window cannot keep."""
    if swa not in get_args(Swa):
        raise UsageError(
            f"swa is {swa!r}, but must be one of {', '.join(get_args(Swa))}"
        )


def whole_windows(
    swa: Swa, window: int, tokens: int, batch: int, sequences: int = 1
) -> bool:
    """Whether layers with a window of `window` tokens (0: there are none) keep every token of a
    context of `tokens`."""
    if swa != "auto" or not window:
        return swa != "small" or not window
    count = _window_cells(window * sequences, tokens, batch)
    return count + CHECKPOINTS * window > _padded(tokens)


def _window_cells(window: int, tokens: int, batch: int) -> int:
    return _padded(min(_padded(tokens), window + batch))


def _padded(tokens: int) -> int:
    return -(-tokens // STEP) * STEP


def cells(arch: Architecture, layer: Layer, context: Context) -> int:
    """Tokens that a layer's cache holds."""
    if not layer.slides or context.whole_windows:
        return context.cells
    return _window_cells(
        arch.window * context.sequences, context.tokens, context.ubatch
    )


def cache_bytes(arch: Architecture, context: Context) -> list[int]:
    """Bytes of keys and values, and of states, layer by layer. Raises UsageError
    where the type's blocks do not divide a head."""
    widest = max(layer.value_row for layer in arch.layers)
    sizes = []
    for layer in arch.layers:
        states = _state_bytes(layer) * context.sequences
        if not layer.kv_heads:
            sizes.append(states)
            continue
        if layer.shares:
            sizes.append(0)
            continue
        # without flash attention values are stored transposed, with as many rows in each layer
        value_row = (
            layer.value_row if context.flash_attention or not layer.value else widest
        )
        count = cells(arch, layer, context)
        sizes.append(
            states
            + _bytes(layer.key_row, layer.key, count, context)
            + _bytes(value_row, layer.value, count, context)
            + _chosen_and_compressed(layer, context)
        )
    return sizes


def compressed_cells(ratio: int, context: Context) -> int:
    """Tokens that the cache of a layer holds whose every ``ratio`` tokens become one."""
    return _padded(-(-context.cells // ratio))


def _chosen_and_compressed(layer: Layer, context: Context) -> int:
    """Bytes of an indexer's keys, and of those of compressed tokens."""
    count = compressed_cells(max(layer.ratio, 1), context)
    # where a layer has values, llama.cpp keeps some with the indexer, which nothing reads
    unread = layer.value * (layer.indexed > 0)
    rows = (layer.indexed, unread, layer.key * (layer.ratio > 0))
    return sum(_bytes(row, row, count, context) for row in rows)


def checkpoint_bytes(arch: Architecture, context: Context) -> int:
    """Bytes of the copies that the engine keeps next to small windows and states, when there are as
    many as there can be."""
    states = CHECKPOINTS * sum(map(_state_bytes, arch.layers))
    # compressed tokens are copied with their windows' cells, whatever those are
    if not arch.window or (context.whole_windows and not arch.streams):
        return states
    count = CHECKPOINTS * min(arch.window, context.tokens)
    rows = (
        (row, head)
        for layer in arch.layers
        if layer.slides and not layer.shares
        for row, head in layer.rows
    )
    return states + sum(_bytes(row, head, count, context) for row, head in rows)


def _state_bytes(layer: Layer) -> int:
    """In float32, whatever the type of keys and values."""
    values = layer.convolved + layer.state
    if layer.ratio == ALL:  # a block's rows and their scores
        values += 2 * ALL * layer.key
    elif layer.ratio:  # two blocks, which overlap: each row has a half for either
        values += 2 * 2 * CHOSEN * 2 * (layer.key + layer.indexed)
    return 4 * values


def _bytes(row: int, head: int, count: int, context: Context) -> int:
    if not row:
        return 0
    if is_quantized(context.kv_type) and head % BLOCK:
        raise UsageError(
            f"kv type {context.kv_type} has blocks of {BLOCK} values, and heads have {head}: take "
            "f16"
        )
    return tensor_nbytes("cache", (row, count), KV_TYPES[context.kv_type])
