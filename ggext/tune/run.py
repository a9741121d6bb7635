"""A run from the request to the verdict, in parts that a caller can show and stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.errors import ModelError, UsageError
from ggext.tune.documents import Encoded, Encoder, read_documents, split
from ggext.tune.finish import Finished, bake, evaluate, file_type, merge, small_file
from ggext.tune.machine import (
    Machine,
    leave_group,
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
        # What it reads, in words.
        self.texts: str = self._described()

    @cached_property
    def _tokens(self) -> list[Encoded]:
        return [self._encoder.encode(document) for document in self._split.training]

    def _described(self) -> str:
        """The texts in a line: documents, tokens to train on, and how many of them are read."""
        lengths = [len(tokens) for tokens in self._tokens]
        trained = self.plan.rope.trained
        if self.plan.rows.kind == "long" and max(lengths) <= trained:
            raise UsageError(
                f"no document has more than the {trained:,} tokens that the model was trained on "
                f"(the longest has {max(lengths):,}), so long rows would be none: give longer "
                "documents, or take rows with jumps (PoSE)"
            )
        needed = self.options.steps * self.plan.step_tokens * self.machine.processes
        line = (
            f"texts: {len(lengths):,} documents of {sum(lengths):,} tokens to train on, "
            f"{len(self._split.held_out)} held out; the run reads {needed:,} tokens"
        )
        times = needed / sum(lengths)
        return (
            line
            if times <= 1
            else f"{line}, each {times:.1f} times: more text is better"
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
        from ggext.tune.train import train

        lora = self.options.lora
        folder = self.plan.folder
        bf16 = self.machine.bf16 and lora is not None
        source = before if before is not None and lora is None else folder
        model = models.load(
            source, stage.rope, bf16=bf16, attention=self.options.attention
        )
        on_proof(prove_model("before training", model, stage.rope))
        if lora is not None and before is not None:
            model = models.from_adapter(model, before, trainable=True)
        elif lora is not None:
            model = models.with_adapter(model, lora, self.options.seed)
        rows = replace(
            self.plan.rows, target=stage.rope.context, seed=self.options.seed + number
        )
        batches = stage.steps * self.plan.accumulation * self.machine.processes

        def on_done(step: Step) -> bool:
            on_step(number, step)
            return self._stopped

        return train(
            model,
            Rows(self._tokens, rows, batches),
            self.folder.stage(number),
            stage.steps,
            self.plan.accumulation,
            self.options,
            self.machine,
            on_done,
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
