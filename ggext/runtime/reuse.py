"""How much of a text a cache has already, and whether a cache that was put back is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.memory.gone import Gone

#: Of the range of the logits; on the machine that saved them they are equal, bit for bit.
TOLERANCE = 1e-3


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        shorter,
    )


def reusable(
    cached: Sequence[int], gone: Gone, prompt: Sequence[int]
) -> tuple[int, int]:
    """Tokens of a cache, from which ``gone`` has left, that stay for the text `prompt`, and how
    many of that text they stand for: as many, and those that left in between."""
    start = gone.start
    count = gone.count
    if gone.found_in(prompt) and prompt[:start] == cached[:start]:
        common = start + common_prefix_length(cached[start:], prompt[start + count :])
        if common > start:
            return common, common + count
    prefix = cached[:start] if count else cached
    common = common_prefix_length(prefix, prompt)
    return common, common


def apart(now: NDArray[np.float32], saved: NDArray[np.float32]) -> float:
    """The largest difference of two rows of logits, (n_vocab,), as a share of their range."""
    import numpy as np

    if not np.isfinite(saved).all():
        return np.inf
    return float(np.abs(now - saved).max() / max(now.max() - now.min(), 1e-30))
