"""Perplexity by position, over key tokens, and by the protocols that published figures use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ggext.quality.statistics import Estimate, mean
from ggext.runtime.likelihood import Divergence, diverge, scores

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.engine import Session

#: LongPPL's parameters (Fang et al., ICLR 2025): α and β of its equation, the short context and
#: the window that shares one, in tokens.
ALPHA, BETA = 2.0, 2.0
SHORT, WINDOW = 4096, 1024

Progress = Callable[[int], None]


def nll(
    session: Session,
    tokens: Sequence[int],
    first: int = 1,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """-log p of tokens[first:], (n_tokens - first,), natural logarithm.

    Streaming: a batch's logits at a time, and 8 bytes for each token. `progress(done)` counts
    scored tokens. Raises ContextFullError, ModelError for logits that are not numbers.
    """
    import numpy as np

    losses = []
    done = 0
    for part in scores(session, tokens, first):
        losses.append(part.nll)
        done += len(part.nll)
        if progress is not None:
            progress(done)
    return np.concatenate(losses) if losses else np.empty(0)


def short_nll(
    session: Session,
    tokens: Sequence[int],
    short: int = SHORT,
    window: int = WINDOW,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """-log p of tokens[short:] where each sees only `short` tokens before its window of `window`.

    LongPPL's short pass. NaN for tokens[1:short], so that it aligns with `nll`.
    """
    import numpy as np

    result = np.full(len(tokens) - 1, np.nan)
    for start in range(0, len(tokens) - short, window):
        seen = tokens[start : start + short + window]
        result[start + short - 1 : start + len(seen) - 1] = nll(session, seen, short)
        if progress is not None:
            progress(start + len(seen))
    return result


def key_tokens(
    short: NDArray[np.float64],
    long: NDArray[np.float64],
    alpha: float = ALPHA,
    beta: float = BETA,
) -> NDArray[np.bool_]:
    """LongPPL's key tokens: those that the long context makes likelier by `alpha` nats and likely,
    with a loss below `beta`. NaN in `short` marks tokens that are not asked about."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        return np.logical_and(short - long > alpha, long < beta) & ~np.isnan(short)


def compare(
    expected: Session,
    actual: Session,
    tokens: Sequence[int],
    progress: Progress | None = None,
) -> Divergence:
    """How another file, or the same in another setting, differs from an expected one, token by
    token: both evaluate the same tokens side by side, and no logits are kept.

    (n_tokens - 1,): after each token but the last.
    """
    following = tokens[1:]
    parts: list[Divergence] = []
    done = 0
    for left, right in _aligned(expected.logit_rows(tokens), actual.logit_rows(tokens)):
        count = min(len(left), len(following) - done)
        if count:
            parts.append(
                diverge(left[:count], right[:count], following[done : done + count])
            )
        done += count
        if progress is not None:
            progress(done)
    return Divergence.joined(parts)


def _aligned(
    left: Iterator[NDArray[np.float32]], right: Iterator[NDArray[np.float32]]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Blocks of both with as many rows; each side's is used up before the next is asked for."""
    a = next(left, None)
    b = next(right, None)
    while a is not None and b is not None:
        count = min(len(a), len(b))
        yield a[:count], b[:count]
        a = a[count:]
        b = b[count:]
        if not len(a):
            a = next(left, None)
        if not len(b):
            b = next(right, None)


@dataclass(frozen=True)
class Band:
    """Positions ``start`` to ``end`` of a text, in tokens."""

    start: int
    end: int


def bands(length: int, least: int = 256) -> list[Band]:
    """Positions in bands that double: 0 to `least`, to 2 · `least` ... to `length`."""
    edges = [0, min(least, length)]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return [Band(start, end) for start, end in pairwise(edges)]


def band_mean(losses: NDArray[np.float64], band: Band) -> float | None:
    """The mean loss of the tokens at the band's positions; losses[i] is that of token i + 1."""
    part = losses[max(0, band.start - 1) : band.end - 1]
    return float(part.mean()) if len(part) else None


def perplexity(means: Sequence[float], names: Sequence[str] | None = None) -> Estimate:
    """exp of the mean of documents' mean losses, with its interval; each document is a unit."""
    return exponential(mean(means, names))


def exponential(estimate: Estimate) -> Estimate:
    """e to the power of a mean loss and of its bounds."""
    high = math.exp(estimate.high) if estimate.high < 700 else math.inf
    return Estimate(
        math.exp(estimate.value),
        math.exp(estimate.low),
        high,
        estimate.items,
        estimate.units,
    )


def token_perplexity(losses: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """llama-perplexity's figure and its ±, which takes tokens for independent: exp of the mean
    over all tokens, and that times the standard error of the mean."""
    import numpy as np

    joined = np.concatenate(losses)
    value = math.exp(float(joined.mean()))
    variance = max(0.0, float((joined * joined).mean() - joined.mean() ** 2))
    return value, value * math.sqrt(variance / max(1, len(joined) - 1))
