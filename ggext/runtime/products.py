"""Products of matrices in the thread that asks for them.

OpenBLAS, which numpy multiplies with, computes large products in threads of its own, as many as
there are cores, whatever a session was given. Where another program keeps a core busy they wait
for each other: a look-up took twenty times the CPU time, and a hundred times as long. It leaves
small products to the thread that asks, so large ones are computed in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Multiplications of a product; OpenBLAS takes threads of its own above 2^18.
_MOST = 1 << 17


def piece(multiplications: int) -> int:
    """How many rows may be multiplied at once, of which each takes so many multiplications."""
    return max(_MOST // multiplications, 1)


def product(
    rows: NDArray[np.float32], matrix: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``rows @ matrix``, of (n, k) and (k, m)."""
    import numpy as np

    at_once = piece(matrix.size)
    padded = np.pad(rows, ((0, -len(rows) % at_once), (0, 0)))
    pieces = padded.reshape(-1, at_once, rows.shape[1])
    result: NDArray[np.float32] = np.matmul(pieces, matrix).reshape(-1, matrix.shape[1])
    return result[: len(rows)]
