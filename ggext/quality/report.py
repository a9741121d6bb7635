"""What was measured, in figures with error bars: the typed result of ``ggext eval``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ggext._version import __version__
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT
from ggext.quality import statistics
from ggext.quality.differences import Difference, differences_of
from ggext.quality.items import Diverged, Item, Losses, Result
from ggext.quality.needles import Outcome
from ggext.quality.perplexity import (
    Band,
    band_mean,
    bands,
    exponential,
    key_tokens,
    perplexity,
    token_perplexity,
)
from ggext.quality.scoring import Reach, effective_context
from ggext.quality.settings import EvalOptions, Setting, own_name
from ggext.quality.statistics import Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggext.quality.partial import Results
    from ggext.quality.plan import Plan

#: Bands of depth in the grid of needles.
DEPTH_BANDS = 5


@dataclass(frozen=True)
class LengthScore:
    """What the questions on texts of one length came to."""

    # Tokens.
    length: int
    # The mean score; several tasks count alike.
    score: Estimate
    # Of each task by its name.
    tasks: dict[str, Estimate]
    # By depth of the needle in the text, from its start: share and questions; None: none there.
    depths: tuple[tuple[float, int] | None, ...]
    # Answers that hit their budget unfinished, and empty ones; of generated answers alone.
    cut: int
    empty: int


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
class KeyTokens:
    """LongPPL: perplexity of the tokens that only the long context makes likely."""

    # Tokens of the short context that they are held against.
    short: int
    # Key tokens, of so many that were looked at.
    count: int
    scored: int
    # None where there is no key token.
    perplexity: float | None


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


@dataclass(frozen=True)
class SettingReport:
    """A file in one setting."""

    name: str
    file: str
    scaling: str
    kv_type: str
    # What llama.cpp turns by a Hadamard matrix before it quantizes it: "keys", "values". It says so
    # in its log; without it 4-bit caches lose several times as much.
    rotated: tuple[str, ...]
    when_full: str
    # Tokens: trained on, and made for.
    trained: int
    context: int
    scores: tuple[LengthScore, ...]
    # By RULER's and by NoLiMa's definition.
    reaches: tuple[Reach, ...]
    bands: tuple[BandLoss, ...]
    key_tokens: KeyTokens | None
    protocol: ProtocolFigure | None
    divergence: tuple[BandDivergence, ...]
    # By how much perplexity on short texts is above the unscaled file's, as a share; None: the file
    # is not scaled, or that was not measured.
    price: Estimate | None
    # Tokens of those short texts.
    price_length: int | None


@dataclass(frozen=True)
class EvalReport:
    """All settings, and what differs beyond the error bars."""

    settings: tuple[SettingReport, ...]
    # Against the first setting.
    differences: tuple[Difference, ...]
    # What could not be measured, or should be known.
    notes: tuple[str, ...]
    # Whether it ended before all was measured.
    interrupted: bool
    seed: int
    form: str
    tasks: tuple[str, ...]
    # Names of the user's documents.
    texts: tuple[str, ...]
    ggext: str = __version__
    llama_cpp: str = LLAMA_CPP_COMMIT

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON; what is not finite is None. Two runs with one seed are equal."""
        values: dict[str, Any] = _finite(asdict(self))
        return values


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def report_of(plan: Plan, options: EvalOptions, results: Results, interrupted: bool) -> EvalReport:
    """The figures of a plan's results, as far as there are any."""
    by_setting = results_by_setting(results)
    reports = []
    for setting in plan.settings:
        found = _planned_results(plan, setting, by_setting)
        reports.append(_setting_report(plan, setting, found, by_setting))
    return EvalReport(
        tuple(reports),
        tuple(differences_of(plan, by_setting)),
        plan.notes,
        interrupted,
        options.seed,
        options.form,
        options.tasks,
        tuple(path.name for path in options.texts),
    )


def results_by_setting(results: Results) -> dict[str, dict[Item, Result]]:
    """What was measured, by the settings' keys."""
    found: dict[str, dict[Item, Result]] = {}
    for (key, item), result in results.items():
        found.setdefault(key, {})[item] = result
    return found


def _planned_results(
    plan: Plan, setting: Setting, results: Mapping[str, dict[Item, Result]]
) -> dict[Item, Result]:
    """In the plan's order, which does not depend on what a partial run had first."""
    found = results.get(setting.key, {})
    planned = (item for one, item in plan.items if one.key == setting.key)
    return {item: found[item] for item in planned if item in found}


def _setting_report(
    plan: Plan,
    setting: Setting,
    found: Mapping[Item, Result],
    results: Mapping[str, Mapping[Item, Result]],
) -> SettingReport:
    scores = _scores(found)
    return SettingReport(
        setting.name,
        setting.path.name,
        setting.scaling_name if setting.scaling is not None else own_name(setting.header),
        setting.kv_type,
        plan.rotated[setting.key],
        setting.when_full,
        setting.trained,
        setting.context,
        scores,
        effective_context({one.length: one.score for one in scores}) if scores else (),
        _band_losses(found),
        _key_tokens(setting, found),
        _protocol(plan, found),
        _divergence(found),
        _price(plan, setting, results),
        None if setting.is_unscaled else plan.short,
    )


def _scores(found: Mapping[Item, Result]) -> tuple[LengthScore, ...]:
    asked: dict[int, dict[Item, list[Outcome]]] = {}
    for item, result in found.items():
        if isinstance(result, list):
            asked.setdefault(item.length, {})[item] = result
    return tuple(_length_score(length, asked[length]) for length in sorted(asked))


def _length_score(length: int, asked: Mapping[Item, list[Outcome]]) -> LengthScore:
    tasks = {}
    for task in dict.fromkeys(item.task for item in asked):
        one = {item: outcomes for item, outcomes in asked.items() if item.task == task}
        tasks[task] = _share(one)
    # Of several tasks each text is one item, so that tasks of many questions weigh no more.
    means = {
        item: [sum(one.score for one in outcomes) / len(outcomes)]
        for item, outcomes in asked.items()
    }
    score = next(iter(tasks.values()))
    if len(tasks) > 1:
        score = statistics.share([mean for (mean,) in means.values()], list(means))
    outcomes = [outcome for found in asked.values() for outcome in found]
    return LengthScore(
        length,
        score,
        tasks,
        tuple(_depth(outcomes, band) for band in range(DEPTH_BANDS)),
        sum(one.cut for one in outcomes),
        sum(one.empty for one in outcomes),
    )


def _share(asked: Mapping[Item, list[Outcome]]) -> Estimate:
    pairs = [(one.score, item) for item, outcomes in asked.items() for one in outcomes]
    return statistics.share([score for score, _ in pairs], [item for _, item in pairs])


def _depth(outcomes: Iterable[Outcome], band: int) -> tuple[float, int] | None:
    scores = [
        one.score
        for one in outcomes
        if one.depth is not None and min(int(one.depth * DEPTH_BANDS), DEPTH_BANDS - 1) == band
    ]
    return (sum(scores) / len(scores), len(scores)) if scores else None


def longest_texts(found: Mapping[Item, Result]) -> dict[Item, Losses]:
    """The losses of the longest texts, by item."""
    texts = {
        item: result
        for item, result in found.items()
        if item.kind == "text" and isinstance(result, Losses)
    }
    longest = max((item.length for item in texts), default=0)
    return {item: result for item, result in texts.items() if item.length == longest}


def _band_losses(found: Mapping[Item, Result]) -> tuple[BandLoss, ...]:
    texts = longest_texts(found)
    if not texts:
        return ()
    length = next(iter(texts)).length
    return tuple(
        BandLoss(band.start, band.end, perplexity(_means(texts.values(), band)))
        for band in bands(length)
    )


def _means(texts: Iterable[Losses], band: Band) -> list[float]:
    means = (band_mean(one.values.astype("f8"), band) for one in texts)
    return [mean for mean in means if mean is not None]


def _key_tokens(setting: Setting, found: Mapping[Item, Result]) -> KeyTokens | None:
    from ggext.quality.bench import short_windows

    count = scored = 0
    total = 0.0
    for item, result in found.items():
        long = found.get(Item("text", "", item.length, item.index))
        if item.kind != "short" or not isinstance(result, Losses) or not isinstance(long, Losses):
            continue
        chosen = key_tokens(result.values.astype("f8"), long.values.astype("f8"))
        count += int(chosen.sum())
        total += float(long.values[chosen].sum())
        scored += int((result.values == result.values).sum())  # not NaN
    if not scored:
        return None
    value = math.exp(total / count) if count else None
    return KeyTokens(short_windows(setting)[0], count, scored, value)


def _protocol(plan: Plan, found: Mapping[Item, Result]) -> ProtocolFigure | None:
    items = {
        item: result
        for item, result in found.items()
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


def _divergence(found: Mapping[Item, Result]) -> tuple[BandDivergence, ...]:
    items = {item: one for item, one in found.items() if isinstance(one, Diverged)}
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


def _price(
    plan: Plan, setting: Setting, results: Mapping[str, Mapping[Item, Result]]
) -> Estimate | None:
    """Of the mean loss on the same short texts, as a share of perplexity."""
    if setting.is_unscaled or plan.short is None:
        return None
    own = short_losses(results.get(setting.key, {}), plan.short)
    base = short_losses(results.get(setting.unscaled().key, {}), plan.short)
    found = statistics.paired(base, own)
    if found is None:
        return None
    ratio = exponential(found)
    return Estimate(ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.items, ratio.units)


def short_losses(found: Mapping[Item, Result], length: int) -> dict[Any, float]:
    """The mean loss of each text of a length, by its index."""
    return {
        item.index: float(result.values.astype("f8").mean())
        for item, result in found.items()
        if item.kind == "text" and item.length == length and isinstance(result, Losses)
    }
