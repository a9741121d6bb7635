"""What a search found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggext._version import __version__
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT
from ggext.rope.recipe import Searched
from ggext.rope.scaling import RopeScaling
from ggext.search.accept import Verdict
from ggext.search.descent import Evaluation
from ggext.search.space import Point


@dataclass(frozen=True)
class SearchResult:
    """What a search found. Contexts in tokens, losses in nats."""

    # The file, as it was named.
    file: str
    trained_context: int
    target_context: int
    # What the losses are of: "needles", or "key tokens".
    objective: str
    seed: int
    # YaRN's table, and the best that was measured; the same where nothing was better.
    yarn: Point
    yarn_scaling: RopeScaling
    best: Point
    scaling: RopeScaling
    # Every table that was measured, in order.
    evaluations: tuple[Evaluation, ...]
    # None where nothing was better on the texts of the search, or the run ended early.
    verdict: Verdict | None
    interrupted: bool
    # What was not done, and why.
    notes: tuple[str, ...]
    # The file that was written; None: none was.
    out: Path | None = None

    @property
    def accepted(self) -> bool:
        """Whether the best table is better than YaRN's on texts that the search had not seen."""
        return self.verdict is not None and self.verdict.accepted

    @property
    def reason(self) -> str:
        """Why YaRN stays; empty where it does not."""
        if self.interrupted:
            return "the search was stopped before its end"
        if self.verdict is None:
            first = self.evaluations[0]
            others = len({one.point for one in self.evaluations}) - 1
            return (
                f"none of {others} other tables was better on the texts of the search (YaRN's "
                f"loss there is {first.loss:.4f})"
            )
        return self.verdict.reason

    @property
    def searched(self) -> Searched:
        """What is kept in the file that has the table."""
        verdict = self.verdict
        assert verdict is not None
        return Searched(
            self.objective,
            self.seed,
            len(self.evaluations),
            verdict.difference.units,
            verdict.yarn_loss,
            verdict.loss,
            verdict.difference.low,
            verdict.difference.high,
            verdict.short_rise,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinite numbers: they are null."""
        values = {
            "ggext": __version__,
            "llama.cpp": LLAMA_CPP_COMMIT,
            **{
                k: v
                for k, v in asdict(self).items()
                if k not in ("yarn_scaling", "scaling")
            },
            "yarn_scaling": {"method": "yarn", **self.yarn_scaling.given()},
            "scaling": {"method": "yarn", **self.scaling.given()},
            "accepted": self.accepted,
            "reason": self.reason,
            "out": None if self.out is None else str(self.out),
        }
        return dict(_finite(values))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
