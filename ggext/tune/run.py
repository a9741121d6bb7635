"""A run from the request to the verdict, in parts that a caller can show and stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.errors import ModelError, UsageError
from ggext.tune.documents import Encoded, Encoder, read_documents, split
from ggext.tune.finish import Finished, bake, evaluate, file_type, merge, small_file
from ggext.tune.machine import (
    Machine,
    leave_group,
    return_freed_memory,
    this_machine,
)
from ggext.tune.plan import Stage, TunePlan, planned
from ggext.tune.rows import Rows
from ggext.tune.state import RunFolder, digest
from ggext.tune.tables import TableProof, prove_model

if TYPE_CHECKING:
    from ggext.tune.options import TuneOptions
    from ggext.tune.train import Step

OnStep = Callable[[int, "Step"], None]


@dataclass(frozen=True)
class Texts:
    """What the run reads."""

    documents: int
    held_out: int
    # Tokens to train on, and tokens that the run reads of them in all.
    tokens: int
    needed: int
    # Documents longer than the trained length.
    long: int

    def __str__(self) -> str:
        times = self.needed / self.tokens
        line = (
            f"texts: {self.documents:,} documents of {self.tokens:,} tokens to train on, "
            f"{self.held_out} held out"
        )
        if self.needed <= self.tokens:
            return f"{line}; the run reads {self.needed:,} tokens"
        return (
            f"{line}; the run reads {self.needed:,} tokens, each {times:.1f} times: more text is "
            "better"
        )


class Tuning:
    """One run. Raises a ``GgextError`` for what cannot be done, before weights are loaded.

    ``plan`` and ``texts`` say what comes; ``train`` and ``finish`` do it.
    """

    def __init__(self, options: TuneOptions) -> None:
        self.options = options
        self.machine: Machine = this_machine()
        self._stopped = False
        self.interrupted = False
        documents = read_documents(options.texts)
        self._split = split(documents, options.seed)
        self._digest = digest(documents)
        plan = planned(options, self.machine)
        self._encoder = Encoder.of(plan.folder)
        rows = replace(plan.rows, prefix=self._encoder.prefix)
        self.plan: TunePlan = replace(plan, rows=rows)
        self.folder = RunFolder(options.out)
        self.texts: Texts = self._counted()

    @cached_property
    def _tokens(self) -> list[Encoded]:
        return [self._encoder.encode(document) for document in self._split.training]

    def _counted(self) -> Texts:
        lengths = [len(tokens) for tokens in self._tokens]
        long = sum(length > self.plan.rope.trained for length in lengths)
        if self.plan.rows.kind == "long" and not long:
            raise UsageError(
                f"no document has more than the {self.plan.rope.trained:,} tokens that the model "
                f"was trained on (the longest has {max(lengths):,}), so long rows would be none: "
                "give longer documents, or take rows with jumps (PoSE)"
            )
        needed = self.options.steps * self.plan.step_tokens * self.machine.processes
        return Texts(
            len(lengths), len(self._split.held_out), sum(lengths), needed, long
        )

    def stop(self) -> None:
        """Ends `train` after the running step, with a checkpoint, from any thread or a signal
        handler."""
        self._stopped = True

    def begin(self) -> None:
        """Makes the folder of the run, or checks the one to go on with."""
        if self.machine.is_first:
            request = self.options.request() | {"digest": self._digest}
            self.folder.begin(request, resume=self.options.resume)

    def train(
        self, on_proof: Callable[[TableProof], None], on_step: OnStep
    ) -> list[float]:
        """All stages; the losses of every step. ``interrupted`` says whether it was stopped."""
        from ggext.tune.train import final_weights

        return_freed_memory()
        losses: list[float] = []
        before: Path | None = None
        for number, stage in enumerate(self.plan.stages, 1):
            weights = final_weights(self.folder.stage(number))
            if weights is None:
                losses += self._stage(number, stage, before, on_proof, on_step)
                weights = final_weights(self.folder.stage(number))
            if weights is None:
                self.interrupted = True
                break
            before = weights
        if self.machine.processes > 1:
            leave_group()
        return losses

    def _stage(
        self,
        number: int,
        stage: Stage,
        before: Path | None,
        on_proof: Callable[[TableProof], None],
        on_step: OnStep,
    ) -> list[float]:
        from ggext.tune import model as models
        from ggext.tune.train import Watcher, train

        lora = self.options.lora
        folder = self.plan.folder
        bf16 = self.machine.bf16 and lora is not None
        source = before if before is not None and lora is None else folder
        model = models.load(
            source, stage.wanted, bf16=bf16, attention=self.options.attention
        )
        on_proof(prove_model("before training", model, stage.wanted))
        if lora is not None and before is not None:
            model = models.from_adapter(model, before, trainable=True)
        elif lora is not None:
            model = models.with_adapter(model, lora, self.options.seed)
        rows = replace(
            self.plan.rows, target=stage.wanted.context, seed=self.options.seed + number
        )
        batches = stage.steps * self.plan.accumulation * self.machine.processes
        return train(
            model,
            Rows(self._tokens, rows, batches),
            self.folder.stage(number),
            stage.steps,
            self.plan.accumulation,
            self.options,
            self.machine,
            Watcher(lambda step: on_step(number, step), lambda: self._stopped),
        )

    def finish(self, progress: Callable[[str], None]) -> Finished:
        """Merges, bakes, proves and evaluates; of the first process alone."""
        from ggext.tune.train import final_weights

        tuned = final_weights(self.folder.stage(len(self.plan.stages)))
        if tuned is None:
            raise ModelError(
                f"{self.folder.path}: training is not at its end; --resume goes on"
            )
        progress("merging the weights in float32")
        merged = merge(
            self.plan, tuned, self.folder, adapter=self.options.lora is not None
        )
        progress("baking and verifying the GGUF file")
        kind = file_type(self.options, self.plan.folder)
        gguf, baked, checks = bake(self.plan, self.folder, kind)
        adapter: tuple[Path, ...] = ()
        if self.options.adapter:
            adapter = small_file(self.plan, tuned, gguf, kind)
        # Of a chat the user's words are not learned, so perplexity is measured on plain text.
        plain = [document for document in self._split.held_out if not document.messages]
        held_out = (
            self._encoder.render(one)[0] for one in plain or self._split.held_out
        )
        texts = self.folder.write_held_out(held_out)
        report, verdict = evaluate(
            self.plan, gguf, self.folder, texts, self.options, progress
        )
        return Finished(
            gguf,
            self.folder.checkpoint,
            adapter,
            (merged, baked),
            checks,
            report,
            verdict,
        )
