"""The keys of a cache at other positions, by ggext's own rotation: exact for every table, gain or
not.

llama.cpp's own context shift is not used. It turns cached keys with the operation that made them,
so a gain other than 1 is applied again; a shift that is cancelled leaves some layers turned and
others not; and quantized keys of heads whose size is no multiple of 64 end the process. This turns
by the difference of the angles, in float64, rounds once, and runs no graph.

Keys of q8_0 are turned by a Hadamard matrix before llama.cpp quantizes them (llama_kv_cache's
attn_rot_k). That is undone, and done again, so that they are as exact as a step of their own
quantization.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.footprint.cache import STEP
from ggext.gguf.rope import effective_table
from ggext.rope.decode import LayerKind, decode_sliding, geometry_of
from ggext.rope.keys import query_scale
from ggext.rope.methods import theta
from ggext.rope.scaling import RopeGeometry
from ggext.runtime.cell_types import WHOLE, floats, rows_of
from ggext.runtime.layers import CachedLayers
from ggext.runtime.products import product
from ggext.runtime.regimes import Regime
from ggext.runtime.state import KvBlock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.gguf.reader import GgufFile
    from ggext.native import Dtype


@dataclass(frozen=True)
class _Turn:
    """How the layers of one kind rotate a head."""

    head_dim: int
    # Radians a position of each pair; none where nothing rotates.
    inv_freq: tuple[float, ...]
    gain: float

    @property
    def hadamard(self) -> int:
        """Of the matrix by which llama.cpp turns keys before it quantizes them."""
        return _hadamard_size(self.head_dim)


class KeyRotation:
    """How a context of one regime rotates its keys, layer by layer. Raises RopeError where that is
    not established."""

    def __init__(self, header: GgufFile, regime: Regime) -> None:
        keys = header.arch_keys()
        geometry = geometry_of(keys, header.arch)
        self._layout = geometry.layout
        self.layers = CachedLayers(header)
        turns: dict[LayerKind, _Turn] = {
            "scaled": _scaled(header, regime, geometry),
            "unrotated": _Turn(geometry.head_dim, (), 1.0),
        }
        own = decode_sliding(keys, header.arch)
        if own is not None:
            size = geometry.of_sliding().head_dim
            turns["unscaled"] = _Turn(size, own.inv_freq, own.attention_factor)
        self._turns = [turns[layer.rotates] for layer in self.layers.layers]

    def moved(
        self,
        block: KvBlock,
        positions: NDArray[np.int32],
        source: KeyRotation | None = None,
    ) -> KvBlock:
        """The block, from a context that rotates as ``source`` does (None: as this one), as if its
        tokens stood at `positions`, int32 (n_cells,), of this one. Raises ModelError."""
        ways = zip(self._of(block), (source or self)._of(block), strict=True)
        rows = zip(block.form.key_types, block.keys, strict=True)
        keys = tuple(
            self._moved(*way, *row, block.positions, positions)
            for way, row in zip(ways, rows, strict=True)
        )
        return replace(block, positions=positions, keys=keys)

    def _moved(
        self,
        to: _Turn,
        of: _Turn,
        kind: int,
        rows: NDArray[np.uint8],
        before: NDArray[np.int32],
        after: NDArray[np.int32],
    ) -> NDArray[np.uint8]:
        """One layer's keys."""
        from ggext.native import Rotation, rotate_between

        if not to.inv_freq:
            return rows
        heads, dtype = _heads(to, kind, rows)
        turned = rotate_between(
            heads,
            Rotation(before, of.inv_freq, of.gain),
            Rotation(after, to.inv_freq, to.gain),
            self._layout,
            dtype=dtype,
        )
        if kind in WHOLE:
            whole: NDArray[np.uint8] = turned.view("u1").reshape(rows.shape)
            return whole
        return rows_of(kind, _mixed(to, turned))

    def _of(self, block: KvBlock) -> list[_Turn]:
        """How each layer of a block rotates. Raises ModelError."""
        turns = self._turns[self.layers.places(block.form.part)]
        if len(block.keys) == len(turns):
            return turns
        if len({*self._turns}) == 1 or not len(block):
            return self._turns[:1] * len(block.keys)
        raise ModelError(
            f"llama.cpp has keys of {len(block.keys)} layers, not of {len(turns)}"
        )

    def error(self, before: KvBlock, after: KvBlock) -> float:
        """How far `before`, moved to the positions of `after`, is from it: the worst difference in
        any layer, relative to the layer's largest key; infinite where a key is no finite number,
        which says nothing of a rotation."""
        import numpy as np

        moved = self.moved(before, after.positions)
        worst = 0.0
        for kind, ours, theirs in zip(
            after.form.key_types, moved.keys, after.keys, strict=True
        ):
            have = floats(kind, ours)
            expected = floats(kind, theirs)
            if not (np.isfinite(have).all() and np.isfinite(expected).all()):
                return math.inf
            difference = np.abs(have - expected).max() / (np.abs(expected).max() or 1.0)
            worst = max(worst, float(difference))
        return worst

    def upright(
        self, block: KvBlock, chosen: Sequence[int] | None = None
    ) -> list[NDArray[np.float32]]:
        """Keys before rotation, (n_cells, n_heads, head_dim), of each layer, or of those `chosen`
        by their places in the block. Raises ModelError."""
        turns = self._of(block)
        return [
            self._back(
                turns[i],
                _floats(turns[i], block.form.key_types[i], block.keys[i]),
                block.positions,
            )
            for i in (range(len(turns)) if chosen is None else chosen)
        ]

    def upright_queries(
        self, place: int, rows: NDArray[np.float32], positions: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Queries of the layer at this place of a block that were rotated at `positions`,
        (n_tokens, n_heads, head_dim), before that."""
        return self._back(self._turns[place], rows, positions)

    def _back(
        self, turn: _Turn, rows: NDArray[np.float32], positions: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        from ggext.native import rotate

        if not turn.inv_freq:
            return rows
        return rotate(
            rows, positions, turn.inv_freq, turn.gain, self._layout, inverse=True
        )


def _scaled(header: GgufFile, regime: Regime, geometry: RopeGeometry) -> _Turn:
    """The layers that a scaling concerns."""
    table = effective_table(header, -(-regime.span // STEP) * STEP, by_ggext=True)
    inv_freq = table.inv_freq
    if regime.freq_base is not None:
        inv_freq = tuple(theta(geometry, regime.freq_base))
    gain = table.attention_factor / math.sqrt(query_scale(header.arch_keys()))
    return _Turn(geometry.head_dim, inv_freq, gain)


def _floats(turn: _Turn, kind: int, rows: Any) -> NDArray[np.float32]:
    values = floats(kind, rows)
    heads = values.reshape(len(values), -1, turn.head_dim)
    return heads if kind in WHOLE else _mixed(turn, heads)


def _mixed(turn: _Turn, heads: NDArray[np.float32]) -> NDArray[np.float32]:
    """Quantized keys as they are before llama.cpp's Hadamard matrix, and the other way round: it is
    its own inverse."""
    if not turn.hadamard:
        return heads
    runs = heads.reshape(-1, turn.hadamard)
    return product(runs, _hadamard(turn.hadamard)).reshape(heads.shape)


def _heads(turn: _Turn, kind: int, rows: Any) -> tuple[Any, Dtype]:
    if kind not in WHOLE:
        return _floats(turn, kind, rows), "float32"
    name, dtype = WHOLE[kind]
    values = rows.view(name)
    if values.shape[1] % turn.head_dim:
        raise ModelError(
            f"a key row of {values.shape[1]} values is not made of heads of {turn.head_dim}"
        )
    return values.reshape(len(values), -1, turn.head_dim), dtype


def _hadamard_size(head_dim: int) -> int:
    """Of the matrix by which llama.cpp turns keys before it quantizes them; 0: it does not.
    ``llama_kv_cache::build_input_k_rot``."""
    if head_dim % 64 or os.environ.get("LLAMA_ATTN_ROT_DISABLE", "0") not in ("", "0"):
        return 0
    return head_dim & -head_dim


@lru_cache(maxsize=4)
def _hadamard(size: int) -> NDArray[np.float32]:
    """The orthonormal Walsh-Hadamard matrix, symmetric, of a power of 2."""
    import numpy as np

    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(math.sqrt(size))
