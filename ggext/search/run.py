"""Searches, judges, and bakes what was found; can be stopped and goes on from where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ggext.convert import ConvertOptions, convert
from ggext.convert import Plan as Conversion
from ggext.errors import ModelError, UsageError
from ggext.gguf.writer import check_output, private_folder_beside, put_in_place
from ggext.quality.bench import Bench
from ggext.quality.kept_lines import KeptLines
from ggext.quality.settings import settings
from ggext.quality.texts import digest, documents_in
from ggext.runtime.closing import Closing
from ggext.runtime.engine import CancelledError
from ggext.runtime.live_table import LiveTable
from ggext.search.accept import MOST_SHORT_RISE, Verdict, judged
from ggext.search.descent import Descent
from ggext.search.objective import KeyTokens, Needles, Objective, ShortTexts
from ggext.search.options import SearchOptions
from ggext.search.plan import Plan, planned
from ggext.search.result import SearchResult
from ggext.search.source import Searchable, searchable
from ggext.search.space import Point, Space
from ggext.verify import verify

_FORMAT = "ggext search, partial run 1"


@dataclass(frozen=True)
class Progress:
    """How far a search is."""

    # What is measured now.
    what: str
    # Losses that this run has measured.
    done: int
    # About the seconds until the end, if it goes through to it.
    seconds_left: float


#: A text to search on, to judge on, or to hold the price on short texts to.
Kind = Literal["train", "held-out", "short"]
OnProgress = Callable[[Progress], None]


def search(
    path: str | Path,
    options: SearchOptions,
    *,
    progress: OnProgress | None = None,
    partial: str | Path | None = None,
) -> SearchResult:
    """Looks for a RoPE table that serves an unscaled GGUF file better than YaRN's at a longer
    context, and writes a file with it only where texts that it had not seen say so.

    `partial`: a file in which every loss is kept at once; where it exists, the search goes on from
    it. Raises UsageError, GgufError, RopeError, ModelError before anything is measured; a file that
    is written was verified.

    >>> from ggext.search import SearchOptions, search
    >>> options = SearchOptions(512, evaluations=2, training=1, held_out=2)
    >>> search("demo.gguf", options).accepted
    False
    """
    kept = None if partial is None else Path(partial)
    with Search(Path(path), options, kept) as running:
        running.run(progress)
        return running.bake() if running.result().accepted else running.result()


class Search(Closing):
    """A search that can be stopped and still says what it measured.

    ``plan``: what is to be measured and about how long that takes, known before it begins;
    ``known``: losses that an earlier run left.
    """

    def __init__(
        self, path: Path, options: SearchOptions, partial: Path | None = None
    ) -> None:
        self._model: Searchable = searchable(path, options)
        check_output(self._model.out, options.force)
        self._options = options
        documents = tuple(one for given in options.texts for one in documents_in(given))
        self._losses: dict[str, float | None] = {}
        self._kept_plan: Plan | None = None
        self._kept = KeptLines(
            partial, self._header(documents), "partial run of ggext search", self._take
        )
        self.known = len(self._losses)
        try:
            self._open(documents)
        except BaseException:
            self._kept.close()
            raise
        self._descent: Descent | None = None
        self._best = self.space.start
        self._verdict: Verdict | None = None
        self._stopped = False
        self._done = 0
        self._progress: OnProgress | None = None
        self._began = 0.0
        self._searching = False
        self.interrupted = False

    @property
    def space(self) -> Space:
        return self._model.space

    def close(self) -> None:
        """Frees the model and ends the partial run's file; further calls do nothing."""
        self._bench.close()
        self._kept.close()

    def stop(self) -> None:
        """Ends `run` at once, from any thread or a signal handler; what was measured stays."""
        self._stopped = True
        self._bench.cancel()

    def run(self, progress: OnProgress | None = None) -> None:
        """Searches and judges. ``interrupted`` says whether it was stopped before the end."""
        self._progress = progress
        self._began = time.monotonic()
        plan = self.plan

        def losses(point: Point, count: int) -> list[float]:
            if self._short_rise(point) > MOST_SHORT_RISE:  # it would not be accepted
                return [math.inf] * count
            return list(self._measured("train", count, point).values())

        self._descent = Descent(self.space, losses, plan.training, plan.evaluations)
        self._searching = True
        try:
            self._best = self._descent.run()
            self._searching = False
            if self._best != self.space.start:
                self._verdict = self._judged()
        except CancelledError:
            self.interrupted = True

    def result(self) -> SearchResult:
        """What was found so far."""
        yarn = self.space.start
        model = self._model
        evaluations = tuple(self._descent.evaluations) if self._descent else ()
        return SearchResult(
            file=str(model.path),
            trained_context=model.trained,
            target_context=self._options.target_context,
            objective=self._objective.name,
            seed=self._options.seed,
            yarn=yarn,
            yarn_scaling=self.space.scaling(yarn),
            best=self._best,
            scaling=self.space.scaling(self._best),
            evaluations=evaluations,
            verdict=self._verdict,
            interrupted=self.interrupted,
            notes=(*model.notes, *self.plan.notes),
        )

    def bake(self) -> SearchResult:
        """Writes the table that was accepted, and frees the model; the file appears once it is
        verified. Raises ModelError where it does not do what was measured, CancelledError after
        `stop`."""
        result = self.result()
        self._bench.close()
        out = self._model.out
        with private_folder_beside(out) as folder:
            options = ConvertOptions(
                self._model.path,
                folder / out.name,
                result.scaling,
                encoding=self._options.encoding,
                searched=result.searched,
            )
            self.conversion: Conversion = convert(options, self._check_stopped)
            _check_verified(folder / out.name, out)
            self._check_stopped()
            put_in_place(folder / out.name, out)
        return replace(result, out=out)

    def _check_stopped(self, _: object = None) -> None:
        if self._stopped:
            raise CancelledError(
                f"{self._model.out} is not written: the search was stopped"
            )

    def _open(self, documents: tuple[Path, ...]) -> None:
        options = self._options
        model = self._model
        measuring = options.measuring(documents)
        (setting,) = settings([model.path], measuring)
        self._live = LiveTable(setting.header)
        self._bench = Bench(
            setting, measuring, options.target_context, self._live.callback
        )
        try:
            length = options.target_context
            yarn = self.space.scaling(self.space.start)
            self._objective: Objective = (
                KeyTokens(self._bench, length, self._live, yarn)
                if documents
                else Needles(self._bench, length, self._live)
            )
            self._short = ShortTexts(self._bench)
            # What a probe is off by grows with the square of what it is extrapolated to.
            speed = self._bench.speed(max(256, min(1024, length // 32)))
            self.plan = planned(
                options, self._objective, self._short, speed, self._kept_plan
            )
        except BaseException:
            self._bench.close()
            raise
        if self._kept_plan is None:
            plan = self.plan
            self._kept.add({"plan": [plan.evaluations, plan.training, plan.held_out]})

    def _judged(self) -> Verdict:
        tables = (self.space.start, self._best)
        yarn, candidate = (
            self._measured("held-out", self.plan.held_out, point) for point in tables
        )
        short = [
            self._read_all("short", self._short.held_out, point) for point in tables
        ]
        return judged(yarn, candidate, *short)

    def _short_rise(self, point: Point) -> float:
        """By how much the loss on short texts of the search is above YaRN's, relative to it."""
        numbers = self._short.training
        yarn, candidate = (
            math.fsum(self._read_all("short", numbers, table).values())
            for table in (self.space.start, point)
        )
        return candidate / yarn - 1

    def _read_all(
        self, kind: Kind, numbers: Sequence[int], point: Point
    ) -> dict[Hashable, float]:
        losses = {number: self._loss(kind, number, point) for number in numbers}
        return {number: loss for number, loss in losses.items() if loss is not None}

    def _measured(self, kind: Kind, count: int, point: Point) -> dict[Hashable, float]:
        """The losses of a point on the first so many texts that have one."""
        objective = self._objective
        numbers = objective.training if kind == "train" else objective.held_out
        result: dict[Hashable, float] = {}
        for number in numbers[: 4 * count]:  # texts without key tokens are seldom many
            # YaRN's table is asked on every text, and which have a loss is the same for all.
            if self._loss(kind, number, self.space.start) is None:
                continue
            loss = self._loss(kind, number, point)
            assert loss is not None
            result[number] = loss
            if len(result) == count:
                break
        if not result:
            raise UsageError(self._objective.nothing_to_ask())
        return result

    def _loss(self, kind: Kind, number: int, point: Point) -> float | None:
        """Of one text by one table, measured once."""
        key = f"{kind}/{number}/{point.key}"
        if key not in self._losses:
            self._show(kind)
            self._check_stopped()
            self._live.use(self.space.scaling(point))
            self._bench.session.clear()
            measure = self._short.loss if kind == "short" else self._objective.loss
            try:
                loss = measure(number)
            finally:
                self._live.check()
            self._losses[key] = loss
            self._kept.add({"text": key, "loss": loss})
            self._done += 1
        return self._losses[key]

    def _show(self, kind: Kind) -> None:
        if self._progress is None:
            return
        tables = len(self._descent.evaluations) if self._descent else 0
        what = f"table {tables + 1} of at most {self.plan.evaluations}"
        if kind != "train":
            what = f"{what}, short texts" if self._searching else "judging"
        pace = self.plan.seconds / self.plan.losses
        if self._done:
            pace = (time.monotonic() - self._began) / self._done
        remaining = max(1, self.plan.losses - self.known - self._done)
        self._progress(Progress(what, self._done, remaining * pace))

    def _header(self, documents: tuple[Path, ...]) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "file": self._model.path.name,
            "bytes": self._model.path.stat().st_size,
            "target": self._options.target_context,
            "seed": self._options.seed,
            "form": self._options.form,
            "texts": [digest(path) for path in documents],
        }

    def _take(self, values: dict[str, Any]) -> None:
        if "plan" in values:
            evaluations, training, held_out = values["plan"]
            self._kept_plan = Plan(int(evaluations), int(training), int(held_out))
            return
        loss = values["loss"]
        self._losses[str(values["text"])] = None if loss is None else float(loss)


def _check_verified(made: Path, out: Path) -> None:
    report = verify(made)
    if report.passed:
        return
    wrong = next(
        check for check in report.checks if check.required and not check.passed
    )
    raise ModelError(
        f"{out} is not written: baked, the table fails {wrong.level}, {wrong.quantity} "
        f"({wrong.value:.2g}, at most {wrong.tolerance:.2g})"
    )
