"""A run of ``ggext tune`` without its end."""

from __future__ import annotations

from typing import Any

from ggext.tune.options import TuneOptions
from ggext.tune.run import Tuning


def losses(options: TuneOptions, stop_after: int | None = None) -> list[float]:
    """The loss of every step. ``stop_after``: the step after which it is stopped."""
    run = Tuning(options)
    run.begin()
    seen: list[float] = []

    def on_step(_stage: int, step: Any) -> None:
        seen.append(step.loss)
        if step.number == stop_after:
            run.stop()

    found = run.train(lambda _: None, on_step)
    assert run.interrupted == (stop_after is not None)
    assert found[-len(seen) :] == seen
    return found
