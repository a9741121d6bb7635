"""Error bars: shares of right answers, means over documents, differences on the same items.

All intervals are two-sided and 95 %. Items that share a text are not independent; the text is
their cluster. Sources: Wilson, JASA 22 (1927); Korn and Graubard, Survey Methodology 24 (1998),
for the effective sample size of clustered shares; Miller, arXiv 2411.00640, for clustered and
paired errors of language model evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

_LEVEL = 0.95
#: The two-sided 95 % quantile of the normal distribution.
Z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
#: A variance of scores up to 1 that is less comes of floating point.
_ROUNDING = 1e-20


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, which is infinite where one unit alone was measured."""

    # The figure itself.
    value: float
    # Lower and upper bound.
    low: float
    high: float
    # Items, and the independent units (texts) that they come from.
    items: int
    units: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the figure differs from 0 beyond its error."""
        return self.low > 0 or self.high < 0


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share of `n` independent trials; `n` need not be whole."""
    if n <= 0:
        return 0.0, 1.0
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = (
        Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    )
    # At the ends the formula is exact, its rounding is not.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def share(
    scores: Sequence[float], clusters: Sequence[Hashable], *, at_most_items: bool = True
) -> Estimate:
    """The mean of scores from 0 to 1, where those of one cluster are not independent.

    Wilson's interval with Korn and Graubard's effective sample size: the scores' number, divided
    by how much the variance between clusters exceeds that of independent ones, and by what few
    clusters leave unknown, (z/t)². Where all scores are 0 or all are 1 the variance says nothing
    and only the latter counts. `at_most_items`: the effective size never exceeds the scores'
    number; right for answers that are right or wrong. Else the variance is at least that of
    independent scores.
    """
    if not scores:
        raise ValueError("a share needs at least one score")
    centre = math.fsum(scores) / len(scores)
    groups = grouped(scores, clusters)
    if len(groups) == 1:
        low, high = wilson(centre, 1)
        return Estimate(centre, low, high, len(scores), 1)
    effective = float(len(scores))
    variance = _clustered_variance(centre, groups)
    if not at_most_items:
        # Two texts that agree by chance would make an interval without width.
        alone = [[score] for score in scores]
        variance = max(variance, _clustered_variance(centre, alone))
    if 0 < centre < 1 and variance > _ROUNDING:
        by_variance = centre * (1 - centre) / variance
        effective = min(effective, by_variance) if at_most_items else by_variance
    effective *= (Z / t_quantile(len(groups) - 1)) ** 2
    low, high = wilson(centre, effective)
    return Estimate(centre, low, high, len(scores), len(groups))


def mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """The mean with a t interval; `clusters` None: every value is a unit of its own.

    With clusters the standard error is the cluster-robust one, with a factor G/(G-1) for G of them.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    places = range(len(values)) if clusters is None else clusters
    groups = grouped(values, places)
    centre = math.fsum(values) / len(values)
    if len(groups) == 1:
        return Estimate(centre, -math.inf, math.inf, len(values), 1)
    half = t_quantile(len(groups) - 1) * math.sqrt(_clustered_variance(centre, groups))
    return Estimate(centre, centre - half, centre + half, len(values), len(groups))


def paired(
    first: Mapping[Hashable, float],
    second: Mapping[Hashable, float],
    cluster_of: Mapping[Hashable, Hashable] | None = None,
) -> Estimate | None:
    """second - first on the items that both have; None where they share none."""
    common = [item for item in first if item in second]
    if not common:
        return None
    differences = [second[item] - first[item] for item in common]
    clusters = common if cluster_of is None else [cluster_of[item] for item in common]
    return mean(differences, clusters)


def difference(
    first: Mapping[Hashable, float],
    second: Mapping[Hashable, float],
    cluster_of: Mapping[Hashable, Hashable],
) -> Estimate | None:
    """second - first of scores from 0 to 1, on the items of both; None where they share none.

    A t interval has no width where every item differs alike, however few there are. So the
    differences, from -1 to 1, are taken for shares, (d + 1) / 2, with `share`'s interval.
    """
    common = [item for item in first if item in second]
    if not common:
        return None
    differences = [second[item] - first[item] for item in common]
    if not any(differences):  # as many that gain as that lose: none
        none = share([0.0] * len(common), [cluster_of[item] for item in common])
        return Estimate(0.0, -none.high, none.high, none.items, none.units)
    halves = [(value + 1) / 2 for value in differences]
    estimate = share(halves, [cluster_of[item] for item in common], at_most_items=False)
    return Estimate(
        2 * estimate.value - 1,
        2 * estimate.low - 1,
        2 * estimate.high - 1,
        estimate.items,
        estimate.units,
    )


def grouped(values: Sequence[float], clusters: Sequence[Hashable]) -> list[list[float]]:
    """The values of each cluster."""
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    return list(groups.values())


def _clustered_variance(centre: float, groups: Sequence[Sequence[float]]) -> float:
    """Of the mean: the squared sums of each cluster's deviations (Miller, section 2.2)."""
    count = sum(map(len, groups))
    sums = (math.fsum(value - centre for value in group) for group in groups)
    small_sample = len(groups) / (len(groups) - 1)
    return small_sample * math.fsum(total * total for total in sums) / count**2


@cache
def t_quantile(df: int, level: float = _LEVEL) -> float:
    """The two-sided quantile of Student's t with `df` degrees of freedom."""
    if df < 1:
        raise ValueError(f"{df} degrees of freedom: at least 1 is needed")
    low = 0.0
    high = 1e9
    for _ in range(200):
        middle = (low + high) / 2
        if _t_within(middle, df) < level:
            low = middle
        else:
            high = middle
    return high


def _t_within(t: float, df: int) -> float:
    """P(|T| < t), Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(df))
    sine = math.sin(theta)
    square = math.cos(theta) ** 2
    if df == 1:
        return 2 * theta / math.pi
    odd = df % 2
    term = math.cos(theta) if odd else 1.0
    total = term
    first = 2 if odd else 1
    for i in range(first, df - 1, 2):
        term *= square * i / (i + 1)
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
