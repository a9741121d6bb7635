"""Measures what a plan lists, keeps each result at once, and says how long it will go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggext.errors import ModelError
from ggext.quality.bench import Bench
from ggext.quality.differences import Difference, differences_between
from ggext.quality.items import Item, Result
from ggext.quality.partial import PartialRun
from ggext.quality.plan import Plan, planned
from ggext.quality.report import EvalReport, report_of, results_by_setting
from ggext.quality.settings import EvalOptions, Setting
from ggext.runtime.closing import Closing
from ggext.runtime.engine import CancelledError


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    # The setting and what is measured on it.
    what: str
    # Items, the running one not counted.
    done: int
    total: int
    # About the seconds until the end.
    seconds_left: float


OnProgress = Callable[[Progress], None]
OnPlan = Callable[[Plan], None]


def evaluate(
    paths: Sequence[str | Path] | str | Path,
    options: EvalOptions | None = None,
    *,
    progress: OnProgress | None = None,
    partial: str | Path | None = None,
) -> EvalReport:
    """How far GGUF files really reach: needles, perplexity by position, the price at a short
    context, with error bars.

    `partial`: a file in which every result is kept at once; where it exists, the run goes on from
    it. Raises UsageError, GgufError, RopeError, ModelError before anything is measured.

    >>> from ggext import EvalOptions, evaluate
    >>> options = EvalOptions(lengths=(256, 512), trials=2, documents=1)
    >>> report = evaluate("demo.gguf", options)
    >>> report.settings[0].reaches[0].definition
    'ruler'
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    kept = None if partial is None else Path(partial)
    with Evaluation(given, options, kept) as evaluation:
        evaluation.run(progress)
        return evaluation.report()


class Evaluation(Closing):
    """A run that can be stopped and still reports what it measured.

    ``plan``: what is to be measured and about how long that takes, known before it begins.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        options: EvalOptions | None = None,
        partial: Path | None = None,
    ) -> None:
        self.options = options = options or EvalOptions()
        self._kept = PartialRun(partial, options)
        try:
            self.plan = planned(paths, options)
        except BaseException:
            self._kept.close()
            raise
        self._bench: Bench | None = None
        self._stopped = False
        self.interrupted = False

    def close(self) -> None:
        """Frees the model and ends the partial run's file; further calls do nothing."""
        self._leave()
        self._kept.close()

    @property
    def measured(self) -> bool:
        """Whether anything is."""
        return len(self.missing) < len(self.plan.items)

    @property
    def missing(self) -> list[tuple[Setting, Item]]:
        """What is not measured yet."""
        results = self._kept.results
        return [
            pair for pair in self.plan.items if (pair[0].key, pair[1]) not in results
        ]

    def stop(self) -> None:
        """Ends `run` at once, from any thread or a signal handler; what was measured stays."""
        self._stopped = True
        bench = self._bench
        if bench is not None:
            bench.cancel()

    def run(self, progress: OnProgress | None = None) -> None:
        """Measures what is missing. ``interrupted`` says whether it was stopped before the end.

        Raises ModelError naming what was measured, for logits that are not numbers; what was
        measured before stays, and `report` shows it.
        """
        clock = _Clock(self.plan, self.missing)
        try:
            for setting, item in self.missing:
                if self._stopped:
                    break
                self._measure(setting, item, clock, progress)
        except CancelledError:
            pass
        finally:
            self._leave()
            self.interrupted = bool(self.missing)

    def _measure(
        self, setting: Setting, item: Item, clock: _Clock, progress: OnProgress | None
    ) -> None:
        def show(tokens: int) -> None:
            if progress is not None:
                progress(clock.progress(setting, item, tokens))

        bench = self._at(setting)
        show(0)
        try:
            self._kept.add(setting.key, item, self._result(bench, item, show))
        except CancelledError:
            raise
        except ModelError as error:
            raise ModelError(f"{named(setting, item)}: {error}") from error
        clock.finish(setting, item)

    def report(self) -> EvalReport:
        """What was measured so far, in figures."""
        return report_of(self.plan, self.options, self._kept.results, self.interrupted)

    def differences(self, first: Setting, second: Setting) -> list[Difference]:
        """Of two of the plan's settings, on what both have measured so far."""
        by_setting = results_by_setting(self._kept.results)
        return list(differences_between(first, second, self.plan.lengths, by_setting))

    def _result(self, bench: Bench, item: Item, show: Callable[[int], None]) -> Result:
        if item.kind != "divergence":
            return bench.measure(item, show)
        with Bench(self.plan.settings[0], self.options, item.length) as first:
            return bench.diverge(item, first.session, show)

    def _at(self, setting: Setting) -> Bench:
        bench = self._bench
        if bench is None or bench.setting.key != setting.key:
            self._leave()
            bench = self._bench = Bench(
                setting, self.options, self.plan.context(setting)
            )
            if self._stopped:
                bench.cancel()
        return bench

    def _leave(self) -> None:
        bench = self._bench
        self._bench = None
        if bench is not None:
            bench.close()


class _Clock:
    """The time left, from the plan's costs and how the run keeps to them."""

    def __init__(self, plan: Plan, missing: Sequence[tuple[Setting, Item]]) -> None:
        self._plan = plan
        self._total = len(missing)
        self._expected = sum(plan.cost(*pair) for pair in missing)
        self._finished = 0.0
        self._count = 0
        self._start = time.monotonic()

    def finish(self, setting: Setting, item: Item) -> None:
        self._finished += self._plan.cost(setting, item)
        self._count += 1

    def progress(self, setting: Setting, item: Item, tokens: int) -> Progress:
        cost = self._plan.cost(setting, item)
        done = self._finished + cost * min(1.0, tokens / item.length)
        pace = 1.0
        if done > 0.02 * self._expected:
            pace = (time.monotonic() - self._start) / done
        remaining = max(0.0, self._expected - done) * pace
        return Progress(named(setting, item), self._count, self._total, remaining)


def named(setting: Setting, item: Item) -> str:
    """What is measured, in words."""
    return f"{setting.name}: {item.task or _KINDS[item.kind]} at {item.length:,} tokens"


_KINDS = {
    "text": "perplexity",
    "short": "key tokens",
    "protocol": "perplexity by protocol",
    "divergence": "divergence",
}
