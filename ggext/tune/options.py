"""What a run is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggext.arguments import check_count, check_fields
from ggext.errors import UsageError
from ggext.rope.scaling import RopeScaling

#: YaRN's own runs of LoRA and PEFT's usual ratio.
LORA_RANK, LORA_ALPHA = 16, 2
LEARNING_RATE = {"lora": 2e-4, "full": 2e-5}
#: Of the options below, those that decide what is trained; others have a form of their own in JSON.
_DECIDING = "target_context stages lora rows window steps batch_tokens seed".split()


@dataclass(frozen=True)
class TuneOptions:
    """What `tune` does. Raises UsageError."""

    # A checkpoint's folder, or what names one (`ggext.checkpoint.named`).
    model: Path
    # Files and folders of text; see `documents.read_documents`.
    texts: tuple[Path, ...]
    # The folder of all that is written.
    out: Path
    # With a factor, or with a target context below.
    scaling: RopeScaling
    # Tokens; in place of the scaling's factor.
    target_context: int | None = None
    # Factors of stages that are trained one after the other, rising to the scaling's; (): one.
    stages: tuple[float, ...] = ()
    # Rank of the trained adapter; None: all weights are trained.
    lora: int | None = LORA_RANK
    # Rows with jumps in their positions, or rows of the target length; None: jumps where the target
    # is more than twice the trained length.
    rows: Literal["pose", "long"] | None = None
    # Tokens of a short row and of one with a jump; None: the trained length.
    window: int | None = None
    # Updates of the weights, over all stages.
    steps: int = 100
    # Tokens for each, in all processes; None: 8,192, or four rows where those are longer.
    batch_tokens: int | None = None
    # None: 2e-4 for LoRA, 2e-5 for all weights.
    learning_rate: float | None = None
    # Steps between two checkpoints of the run.
    save_every: int = 20
    # Whether what is kept for the way back is computed again instead.
    gradient_checkpointing: bool = True
    # The implementation of attention in transformers.
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    # Which documents are held out, which rows come when.
    seed: int = 0
    # Type of the GGUF file; auto: the checkpoint's.
    type: str = "auto"
    # Whether the small GGUF file is written too.
    adapter: bool = False
    # Continues from the last checkpoint in `out`.
    resume: bool = False
    # Seconds that the evaluation may take, and texts of the target length for the answers, with
    # twice as many short ones (None: what fits).
    evaluation_seconds: float = 600.0
    trials: int | None = None
    # The settings of `accelerate launch`, by which this process was started; None: one process.
    launch: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.texts:
            raise UsageError("there is no text to tune on: name files or folders")
        check_count("steps", self.steps)
        check_count("save_every", self.save_every)
        for name in ("lora", "window", "batch_tokens", "target_context", "trials"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
        rate = self.learning_rate
        if rate is not None and not 0 < rate < 1:
            raise UsageError(
                f"the learning rate is {rate:g}; it must be between 0 and 1"
            )
        if list(self.stages) != sorted(set(self.stages)) or any(
            f <= 1 for f in self.stages
        ):
            raise UsageError(
                f"the stages are {', '.join(f'{f:g}' for f in self.stages)}; their factors must "
                "rise, and be more than 1"
            )
        if self.adapter and self.lora is None:
            raise UsageError(
                "an adapter is what LoRA trains; with all weights there is none"
            )
        if len(self.stages) > self.steps:
            raise UsageError(
                f"{self.steps} steps are too few for {len(self.stages)} stages"
            )

    @property
    def rate(self) -> float:
        """The learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LEARNING_RATE["full" if self.lora is None else "lora"]

    def request(self) -> dict[str, object]:
        """All that decides what is trained, in JSON: a run goes on only with the same."""
        return {name: getattr(self, name) for name in _DECIDING} | {
            "model": str(self.model),
            "texts": [str(path) for path in self.texts],
            "scaling": {"method": self.scaling.method, **self.scaling.given()},
            "learning_rate": self.rate,
        }
