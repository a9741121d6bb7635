"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ggext.arguments import check_count, check_fields
from ggext.errors import UsageError
from ggext.quality.prompts import Form
from ggext.quality.settings import EvalOptions
from ggext.rope.encoding import EncodingName

#: More tables would fit the texts of the search rather than the model.
MOST_EVALUATIONS = 40


@dataclass(frozen=True)
class SearchOptions:
    """What `search` looks for. Raises UsageError."""

    # Tokens, more than the model was trained on.
    target_context: int
    # The file to write where a better table is found; None: named after the model.
    out: Path | None = None
    # Documents, or folders of them: the loss on their key tokens, in place of needles.
    texts: tuple[Path, ...] = ()
    # The same seed gives the same result.
    seed: int = 0
    # Seconds that it may take; it picks as many tables and texts as fit.
    budget: float = 3600.0
    # Tables to measure, at most 40; None: as many as the budget allows.
    evaluations: int | None = None
    # Texts to search on, and to judge on; None: as many as the budget allows.
    training: int | None = None
    held_out: int | None = None
    # How the prompts are made.
    form: Form = "auto"
    # How the table is written; None: the simplest that is exact.
    encoding: EncodingName | None = None
    # Whether an output that exists is replaced.
    force: bool = False
    # Threads on the CPU; None: as a chat takes.
    threads: int | None = None
    # Layers on a GPU; None: as many as the library can.
    gpu_layers: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("target_context", self.target_context)
        if (
            self.evaluations is not None
            and not 2 <= self.evaluations <= MOST_EVALUATIONS
        ):
            raise UsageError(
                f"evaluations is {self.evaluations}, but must be from 2 to {MOST_EVALUATIONS}: "
                "more would fit the texts, not the model"
            )
        if self.training is not None:
            check_count("training", self.training)
        if self.held_out is not None:
            check_count("held_out", self.held_out, 2)
        if self.form not in get_args(Form):
            raise UsageError(
                f"form is {self.form!r}, but must be {', '.join(get_args(Form))}"
            )
        if not self.budget > 0:
            raise UsageError(
                f"the budget is {self.budget} seconds, but must be more than 0"
            )

    def measuring(self, documents: tuple[Path, ...]) -> EvalOptions:
        """The same for what `ggext.quality` measures."""
        return EvalOptions(
            texts=documents,
            form=self.form,
            seed=self.seed,
            threads=self.threads,
            gpu_layers=self.gpu_layers,
        )
