"""What differs between two settings beyond the error bars, on the same items."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggext.quality import statistics
from ggext.quality.items import Item, Losses, Result
from ggext.quality.perplexity import Band, band_mean, bands, exponential
from ggext.quality.statistics import Estimate

if TYPE_CHECKING:
    from ggext.quality.plan import Plan
    from ggext.quality.settings import Setting


@dataclass(frozen=True)
class Difference:
    """The second setting against the first one, paired."""

    first: str
    second: str
    # "answers" (a difference of shares) or "perplexity" (as a share of the first's).
    what: str
    # Tokens: of the texts for answers, and positions for perplexity.
    start: int
    end: int
    difference: Estimate
    # The name of the better one; None where the interval holds zero.
    winner: str | None


def differences_of(
    plan: Plan, results: Mapping[str, Mapping[Item, Result]]
) -> Iterator[Difference]:
    """Every setting against the first, on what both have measured."""
    if not plan.settings:
        return
    first, *others = plan.settings
    for other in others:
        yield from differences_between(first, other, plan.lengths, results)


def differences_between(
    first: Setting,
    second: Setting,
    lengths: Iterable[int],
    results: Mapping[str, Mapping[Item, Result]],
) -> Iterator[Difference]:
    """Of two settings, on what both have measured. ``lengths``: of the texts for answers, in
    tokens; ``results``: by the settings' keys."""
    base = results.get(first.key, {})
    others = results.get(second.key, {})
    for length in lengths:
        estimate = _answers(base, others, length)
        if estimate is not None:
            winner = _winner(first.name, second.name, estimate, more_is_better=True)
            yield Difference(
                first.name, second.name, "answers", length, length, estimate, winner
            )
    yield from _perplexities(first.name, second.name, base, others)


def _answers(
    base: Mapping[Item, Result], results: Mapping[Item, Result], length: int
) -> Estimate | None:
    first = _scores(base, length)
    second = _scores(results, length)
    clusters = {question: question[0] for question in first}
    return statistics.difference(
        dict(first), dict(second), dict[Hashable, Hashable](clusters.items())
    )


def _scores(
    results: Mapping[Item, Result], length: int
) -> dict[tuple[Item, int], float]:
    return {
        (item, i): outcome.score
        for item, result in results.items()
        if item.length == length and isinstance(result, list)
        for i, outcome in enumerate(result)
    }


def _perplexities(
    first: str, second: str, base: Mapping[Item, Result], results: Mapping[Item, Result]
) -> Iterator[Difference]:
    """By position, of the longest texts that both have."""
    common = [
        item
        for item, result in base.items()
        if item.kind == "text" and item in results and isinstance(result, Losses)
    ]
    length = max((item.length for item in common), default=0)
    items = [item for item in common if item.length == length]
    if not items:
        return
    for band in bands(length):
        left = {}
        right = {}
        for item in items:
            left[item] = _loss(base[item], band)
            right[item] = _loss(results[item], band)
        estimate = statistics.paired(
            {item: value for item, value in left.items() if value is not None},
            {item: value for item, value in right.items() if value is not None},
        )
        if estimate is None:
            continue
        ratio = exponential(estimate)
        change = Estimate(
            ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.items, ratio.units
        )
        winner = _winner(first, second, change, more_is_better=False)
        yield Difference(
            first, second, "perplexity", band.start, band.end, change, winner
        )


def _loss(result: Result, band: Band) -> float | None:
    assert isinstance(result, Losses)
    return band_mean(result.values.astype("f8"), band)


def _winner(
    first: str, second: str, estimate: Estimate, *, more_is_better: bool
) -> str | None:
    if not estimate.excludes_zero:
        return None
    return second if (estimate.low > 0) == more_is_better else first
