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
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.footprint.cache import STEP
from ggext.gguf.rope import effective_table
from ggext.rope.decode import geometry_of
from ggext.rope.keys import query_scale
from ggext.rope.methods import theta
from ggext.runtime.cell_types import WHOLE, floats, rows_of
from ggext.runtime.products import product
from ggext.runtime.regimes import Regime
from ggext.runtime.state import KvBlock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.gguf.reader import GgufFile
    from ggext.native import Dtype


class KeyRotation:
    """How a context of one regime rotates its keys. Raises RopeError where that is not
    established."""

    def __init__(self, header: GgufFile, regime: Regime) -> None:
        geometry = geometry_of(header.arch_keys(), header.arch)
        self._layout = geometry.layout
        self._head_dim = geometry.head_dim
        table = effective_table(header, -(-regime.span // STEP) * STEP, by_ggext=True)
        self._inv_freq = (
            table.inv_freq
            if regime.freq_base is None
            else tuple(theta(geometry, regime.freq_base))
        )
        self._hadamard = _hadamard_size(geometry.head_dim)
        self._gain = table.attention_factor / math.sqrt(query_scale(header.arch_keys()))

    def moved(
        self,
        block: KvBlock,
        positions: NDArray[np.int32],
        source: KeyRotation | None = None,
    ) -> KvBlock:
        """The block, from a context that rotates as ``source`` does (None: as this one), as if its
        tokens stood at `positions`, int32 (n_cells,), of this one. Raises ModelError."""
        from ggext.native import Rotation, rotate_between

        of = source or self
        before = Rotation(block.positions, of._inv_freq, of._gain)
        after = Rotation(positions, self._inv_freq, self._gain)
        keys = []
        for kind, rows in zip(block.form.key_types, block.keys, strict=True):
            heads, dtype = self._heads(kind, rows)
            turned = rotate_between(heads, before, after, self._layout, dtype=dtype)
            keys.append(
                turned.view("u1").reshape(rows.shape)
                if kind in WHOLE
                else self._rows(kind, turned)
            )
        return replace(block, positions=positions, keys=tuple(keys))

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
            wanted = floats(kind, theirs)
            if not (np.isfinite(have).all() and np.isfinite(wanted).all()):
                return math.inf
            difference = np.abs(have - wanted).max() / (np.abs(wanted).max() or 1.0)
            worst = max(worst, float(difference))
        return worst

    def upright(self, block: KvBlock) -> list[NDArray[np.float32]]:
        """Each layer's keys before rotation, (n_cells, n_heads, head_dim). Raises ModelError."""
        from ggext.native import rotate

        return [
            rotate(
                self._floats(kind, rows),
                block.positions,
                self._inv_freq,
                self._gain,
                self._layout,
                inverse=True,
            )
            for kind, rows in zip(block.form.key_types, block.keys, strict=True)
        ]

    def upright_queries(
        self, rows: NDArray[np.float32], positions: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Queries that were rotated at `positions`, (n_tokens, n_heads, head_dim), before that."""
        from ggext.native import rotate

        return rotate(
            rows, positions, self._inv_freq, self._gain, self._layout, inverse=True
        )

    def _floats(self, kind: int, rows: Any) -> NDArray[np.float32]:
        values = floats(kind, rows)
        heads = values.reshape(len(values), -1, self._head_dim)
        return heads if kind in WHOLE else self._mixed(heads)

    def _rows(self, kind: int, heads: NDArray[np.float32]) -> NDArray[np.uint8]:
        return rows_of(kind, heads if kind in WHOLE else self._mixed(heads))

    def _mixed(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Quantized keys as they are before llama.cpp's Hadamard matrix, and the other way round:
        it is its own inverse."""
        if not self._hadamard:
            return heads
        runs = heads.reshape(-1, self._hadamard)
        return product(runs, _hadamard(self._hadamard)).reshape(heads.shape)

    def _heads(self, kind: int, rows: Any) -> tuple[Any, Dtype]:
        if kind not in WHOLE:
            return self._floats(kind, rows), "float32"
        name, dtype = WHOLE[kind]
        values = rows.view(name)
        if values.shape[1] % self._head_dim:
            raise ModelError(
                f"a key row of {values.shape[1]} values is not made of heads of {self._head_dim}"
            )
        return values.reshape(len(values), -1, self._head_dim), dtype


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
