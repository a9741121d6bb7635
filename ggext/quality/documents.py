"""What documents came to: perplexity by position and over key tokens, divergence, the price."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggext.quality import statistics
from ggext.quality.items import Diverged, Item, Losses, Result
from ggext.quality.perplexity import (
    Band,
    band_mean,
    bands,
    exponential,
    key_tokens,
    perplexity,
    token_perplexity,
)
from ggext.quality.statistics import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.quality.plan import Plan
    from ggext.quality.settings import Setting


@dataclass(frozen=True)
class BandLoss:
    """Perplexity of the tokens at positions ``start`` to ``end``."""

    start: int
    end: int
    perplexity: Estimate


@dataclass(frozen=True)
class BandDivergence:
    """How the probabilities at positions ``start`` to ``end`` differ from the first setting's."""

    start: int
    end: int
    # Mean KL in nats; share of equal likeliest tokens; mean Δp of the token that follows.
    kl: Estimate
    same_top: Estimate
    delta_p: Estimate


@dataclass(frozen=True)
class KeyBand:
    """Key tokens at positions ``start`` to ``end`` of the texts."""

    start: int
    end: int
    # How many, and their perplexity; None where there is none.
    count: int
    perplexity: float | None


@dataclass(frozen=True)
class KeyTokens:
    """LongPPL: perplexity of the tokens that only the long context makes likely."""

    # Tokens of the short context that they are held against.
    short: int
    # Key tokens, of so many that were looked at.
    count: int
    scored: int
    # None where there is no key token.
    perplexity: float | None
    # The same by position.
    bands: tuple[KeyBand, ...]


@dataclass(frozen=True)
class ProtocolFigure:
    """Perplexity as published figures define it."""

    # "llama.cpp" or "yarn".
    protocol: str
    # Tokens of a chunk or a document, and how many.
    length: int
    count: int
    value: float
    # llama.cpp's ±, which takes tokens for independent; None for yarn.
    error: float | None


def band_losses(plan: Plan, results: Mapping[Item, Result]) -> tuple[BandLoss, ...]:
    """Of the longest documents. The short texts of the price are none of them."""
    texts = {
        item: result
        for item, result in results.items()
        if item.kind == "text"
        and isinstance(result, Losses)
        and item.length in plan.lengths
    }
    if not texts:
        return ()
    length = max(item.length for item in texts)
    longest = [result for item, result in texts.items() if item.length == length]
    return tuple(
        BandLoss(band.start, band.end, perplexity(_means(longest, band)))
        for band in bands(length)
    )


def _means(texts: Iterable[Losses], band: Band) -> list[float]:
    means = (band_mean(one.values.astype("f8"), band) for one in texts)
    return [mean for mean in means if mean is not None]


def key_tokens_of(setting: Setting, results: Mapping[Item, Result]) -> KeyTokens | None:
    """Of the documents that were read a second time in short windows; None: of none."""
    import numpy as np

    from ggext.quality.bench import short_windows

    pairs = []
    for item, result in results.items():
        whole = results.get(Item("text", "", item.length, item.index))
        if (
            item.kind == "short"
            and isinstance(result, Losses)
            and isinstance(whole, Losses)
        ):
            pairs.append((result.values.astype("f8"), whole.values.astype("f8")))
    if not pairs:
        return None
    short, long = map(
        np.array, zip(*pairs, strict=True)
    )  # (n_texts, n_tokens - 1) each
    scored = int((short == short).sum())  # not NaN
    if not scored:
        return None
    chosen = key_tokens(short, long)
    parts = []
    for band in bands(short.shape[1] + 1):
        part = slice(max(0, band.start - 1), band.end - 1)
        losses = long[:, part][chosen[:, part]]
        if (short[:, part] == short[:, part]).any():
            parts.append(
                KeyBand(band.start, band.end, len(losses), _perplexity(losses))
            )
    context = short_windows(setting)[0]
    return KeyTokens(
        context, int(chosen.sum()), scored, _perplexity(long[chosen]), tuple(parts)
    )


def _perplexity(losses: NDArray[np.float64]) -> float | None:
    return math.exp(float(losses.mean())) if len(losses) else None


def protocol_figure(
    plan: Plan, results: Mapping[Item, Result]
) -> ProtocolFigure | None:
    """By the plan's protocol; None where it has none."""
    items = {
        item: result
        for item, result in results.items()
        if item.kind == "protocol" and isinstance(result, Losses)
    }
    if not items or plan.protocol is None:
        return None
    losses = [result.values.astype("f8") for result in items.values()]
    length = next(iter(items)).length
    if plan.protocol == "llama.cpp":
        value, error = token_perplexity(losses)
        return ProtocolFigure("llama.cpp", length, len(losses), value, error)
    value = perplexity([float(one.mean()) for one in losses]).value
    return ProtocolFigure("yarn", length, len(losses), value, None)


def divergences(results: Mapping[Item, Result]) -> tuple[BandDivergence, ...]:
    """From the first setting, by position; empty for the first itself."""
    items = {item: one for item, one in results.items() if isinstance(one, Diverged)}
    if not items:
        return ()
    length = next(iter(items)).length
    return tuple(
        BandDivergence(
            band.start,
            band.end,
            _band_mean([one.kl for one in items.values()], band),
            _band_mean([one.same_top for one in items.values()], band),
            _band_mean([one.delta_p for one in items.values()], band),
        )
        for band in bands(length)
    )


def _band_mean(values: Sequence[Any], band: Band) -> Estimate:
    means = (band_mean(one.astype("f8"), band) for one in values)
    return statistics.mean([mean for mean in means if mean is not None])


def price(
    plan: Plan, setting: Setting, results: Mapping[str, Mapping[Item, Result]]
) -> Estimate | None:
    """By what share perplexity on short texts is above the unscaled file's on the same; None: the
    file is not scaled, or that was not measured."""
    if setting.is_unscaled or plan.short is None:
        return None
    own = _short_losses(results.get(setting.key, {}), plan.short)
    base = _short_losses(results.get(setting.unscaled().key, {}), plan.short)
    difference = statistics.paired(base, own)
    if difference is None:
        return None
    ratio = exponential(difference)
    return Estimate(
        ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.items, ratio.units
    )


def _short_losses(results: Mapping[Item, Result], length: int) -> dict[Any, float]:
    """The mean loss of each text of a length, by its index."""
    return {
        item.index: float(result.values.astype("f8").mean())
        for item, result in results.items()
        if item.kind == "text" and item.length == length and isinstance(result, Losses)
    }
