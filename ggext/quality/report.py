"""What was measured, in figures with error bars: the typed result of ``ggext eval``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ggext._version import __version__
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT
from ggext.quality import statistics
from ggext.quality.differences import Difference, differences_of
from ggext.quality.documents import (
    BandDivergence,
    BandLoss,
    KeyTokens,
    ProtocolFigure,
    band_losses,
    divergences,
    key_tokens_of,
    price,
    protocol_figure,
)
from ggext.quality.items import Item, Result
from ggext.quality.needles import Outcome
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
    tasks: Mapping[str, Estimate]
    # By depth of the needle in the text, from its start: share and questions; None: none there.
    depths: tuple[tuple[float, int] | None, ...]
    # Answers that hit their budget unfinished, and empty ones; of generated answers alone.
    cut: int
    empty: int


@dataclass(frozen=True)
class SettingReport:
    """A file in one setting."""

    name: str
    file: str
    scaling: str
    kv_type: str
    # What llama.cpp turns by a Hadamard matrix before it quantizes it: "keys", "values". It says so
    # in its log; without it a 4-bit cache diverges three times as far (benchmarks/results/eval.md).
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


def report_of(
    plan: Plan, options: EvalOptions, results: Results, interrupted: bool
) -> EvalReport:
    """The figures of a plan's results, as far as there are any."""
    by_setting = results_by_setting(results)
    reports = []
    for setting in plan.settings:
        planned = _planned_results(plan, setting, by_setting)
        reports.append(_setting_report(plan, setting, planned, by_setting))
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
    by_setting: dict[str, dict[Item, Result]] = {}
    for (key, item), result in results.items():
        by_setting.setdefault(key, {})[item] = result
    return by_setting


def _planned_results(
    plan: Plan, setting: Setting, results: Mapping[str, dict[Item, Result]]
) -> dict[Item, Result]:
    """In the plan's order, which does not depend on what a partial run had first."""
    measured = results.get(setting.key, {})
    planned = (item for one, item in plan.items if one.key == setting.key)
    return {item: measured[item] for item in planned if item in measured}


def _setting_report(
    plan: Plan,
    setting: Setting,
    measured: Mapping[Item, Result],
    results: Mapping[str, Mapping[Item, Result]],
) -> SettingReport:
    scores = _scores(measured)
    short = None if setting.is_unscaled else plan.short
    effective = (
        effective_context({one.length: one.score for one in scores}) if scores else ()
    )
    scaling_name = (
        setting.scaling_name
        if setting.scaling is not None
        else own_name(setting.header)
    )
    return SettingReport(
        setting.name,
        setting.path.name,
        scaling_name,
        setting.kv_type,
        plan.rotated[setting.key],
        setting.when_full,
        setting.trained,
        setting.context,
        scores,
        effective,
        band_losses(plan, measured),
        key_tokens_of(setting, measured),
        protocol_figure(plan, measured),
        divergences(measured),
        price(plan, setting, results),
        short,
    )


def _scores(results: Mapping[Item, Result]) -> tuple[LengthScore, ...]:
    by_length: dict[int, dict[Item, list[Outcome]]] = {}
    for item, result in results.items():
        if isinstance(result, list):
            by_length.setdefault(item.length, {})[item] = result
    return tuple(
        _length_score(length, by_length[length]) for length in sorted(by_length)
    )


def _length_score(length: int, results: Mapping[Item, list[Outcome]]) -> LengthScore:
    tasks = {}
    for task in dict.fromkeys(item.task for item in results):
        one = {
            item: outcomes for item, outcomes in results.items() if item.task == task
        }
        tasks[task] = _share(one)
    # Of several tasks each text is one item, so that tasks of many questions weigh no more.
    means = {
        item: [sum(one.score for one in outcomes) / len(outcomes)]
        for item, outcomes in results.items()
    }
    score = next(iter(tasks.values()))
    if len(tasks) > 1:
        score = statistics.share([mean for (mean,) in means.values()], list(means))
    outcomes = [outcome for each in results.values() for outcome in each]
    return LengthScore(
        length,
        score,
        tasks,
        tuple(_depth(outcomes, band) for band in range(DEPTH_BANDS)),
        sum(one.cut for one in outcomes),
        sum(one.empty for one in outcomes),
    )


def _share(results: Mapping[Item, list[Outcome]]) -> Estimate:
    pairs = [
        (one.score, item) for item, outcomes in results.items() for one in outcomes
    ]
    return statistics.share([score for score, _ in pairs], [item for _, item in pairs])


def _depth(outcomes: Iterable[Outcome], band: int) -> tuple[float, int] | None:
    scores = [
        one.score
        for one in outcomes
        if one.depth is not None
        and min(int(one.depth * DEPTH_BANDS), DEPTH_BANDS - 1) == band
    ]
    return (sum(scores) / len(scores), len(scores)) if scores else None
