"""States of recurrent layers as bytes: what ``llama_state_seq_get_data`` writes after the keys and
values of the layers that attend (``llama_memory_recurrent::state_write``).

u32 cells; per cell i32 position, u32 number of sequences (0: the one that is written); u32 whether
states are transposed (0), u32 layers of the model; then of each layer that has a state i32 type,
u64 row bytes, the rows of what its convolution goes on from; then of each the same of its state,
which is empty where it is a convolution alone. Little-endian. Every count is checked against the
bytes that are there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from ggext.llama_cpp_facts.limits import MAX_LAYERS


@dataclass(frozen=True)
class States:
    """One sequence's states."""

    # Where its last token stands; None before the first.
    position: int | None
    # Bytes of a layer's convolved tokens and of its state, layer by layer.
    convolved: tuple[int, ...]
    states: tuple[int, ...]


def read_states(data: Any, at: int) -> States:
    """The states that fill the bytes from ``at`` to the end. Raises ValueError for any others."""
    data = memoryview(data)
    count, at = _numbers(data, "I", at)
    if count[0] > 1:
        raise ValueError(f"{count[0]} states for one sequence")
    position = None
    if count[0]:
        (position, sequences), at = _numbers(data, "iI", at)
        if sequences:
            raise ValueError(f"a state of {sequences} sequences")
    (transposed, layers), at = _numbers(data, "II", at)
    if transposed or not 0 < layers <= MAX_LAYERS:
        raise ValueError(f"transposed states, or those of {layers} layers")
    sizes = []
    while at < len(data):
        (_, size), at = _numbers(data, "iQ", at)
        at += size * count[0]
        if at > len(data):
            raise ValueError(f"a state of {size} bytes, and fewer that follow")
        sizes.append(size)
    half = len(sizes) // 2
    if len(sizes) % 2 or not 0 < half <= layers or len({*sizes[:half]}) > 1:
        raise ValueError(f"{len(sizes)} states of {layers} layers")
    return States(position, tuple(sizes[:half]), tuple(sizes[half:]))


def _numbers(data: memoryview, codes: str, at: int) -> tuple[tuple[int, ...], int]:
    """Numbers at a byte, and the byte after them."""
    packed = struct.Struct(f"<{codes}")
    if at + packed.size > len(data):
        raise ValueError(f"its end at byte {at} of {len(data)}")
    return packed.unpack_from(data, at), at + packed.size
