"""One stage: transformers' Trainer on our rows, with our loss, going on where it was stopped."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ggext.errors import ModelError, OutputError, first_line
from ggext.tune.loss import BlockLoss, weight_of
from ggext.tune.model import quiet

if TYPE_CHECKING:
    from ggext.tune.machine import Machine
    from ggext.tune.options import TuneOptions
    from ggext.tune.rows import Batch, Rows

#: In a checkpoint's folder once all of it is on the disk.
WHOLE = "whole"
_KEPT = 2
_CHECKED_TOKENS = 64
_WARM_UP = 0.1  # of the steps


@dataclass(frozen=True)
class Step:
    """How a stage stands after an update."""

    number: int
    steps: int
    # Mean loss of a learned token, in nats, with the weights of `token_weights`.
    loss: float


OnStep = Callable[[Step], bool]


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a stage that was written to its end."""
    checkpoints = [
        path for path in folder.glob("checkpoint-*") if (path / WHOLE).is_file()
    ]
    return max(checkpoints, key=lambda path: int(path.name[11:]), default=None)


def final_weights(folder: Path) -> Path | None:
    """The weights of a stage that was trained to its end: an adapter's, or all."""
    path = folder / "final"
    return path if (path / WHOLE).is_file() else None


def train(
    model: Any,
    rows: Rows,
    folder: Path,
    steps: int,
    accumulation: int,
    options: TuneOptions,
    machine: Machine,
    on_step: OnStep,
) -> list[float]:
    """The loss of every step, of those before an interruption too; fewer where it was stopped.
    Afterwards, where it was not, the weights are in ``final_weights``.

    ``on_step``: whether to end after this step, with a checkpoint. Raises ``ModelError`` for a
    gradient that is no number, ``OutputError`` where a checkpoint cannot be written.
    """
    if machine.is_first:
        _remove_broken(folder)
    checkpoint = last_whole(folder)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if options.gradient_checkpointing:
        with quiet():
            base.gradient_checkpointing_enable({"use_reentrant": False})
    loss = BlockLoss(base)
    loss.check(_first_tokens(rows[0]))
    with quiet():
        trainer = _Trainer(
            model=model,
            args=_arguments(folder, steps, accumulation, options, machine),
            train_dataset=rows,
            data_collator=_tensors,
            callbacks=[_Watch(on_step)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.model_accepts_loss_kwargs = True  # it asks for the weights of a step
        trainer.loss_is_scaled_for_ga = True
        try:
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        finally:
            loss.restore()
    if trainer.state.global_step >= steps:
        trainer.save_final()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _remove_broken(folder: Path) -> None:
    """Checkpoints of a process that was killed while it wrote them."""
    for path in folder.glob("checkpoint-*"):
        if not (path / WHOLE).is_file():
            shutil.rmtree(path, ignore_errors=True)


def _arguments(
    folder: Path, steps: int, accumulation: int, options: TuneOptions, machine: Machine
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        learning_rate=options.rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=max(1, round(_WARM_UP * steps)),
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=machine.bf16,
        use_cpu=not machine.gpu,
        train_sampling_strategy="sequential",  # the rows are in a random order already
        save_strategy="steps",
        save_steps=options.save_every,
        save_total_limit=_KEPT,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
        dataloader_pin_memory=machine.gpu,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )


def _tensors(batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """One micro-batch, which `Rows` has put together."""
    (batch,) = batches
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _first_tokens(batch: Batch) -> dict[str, torch.Tensor]:
    return {
        name: values[:1, :_CHECKED_TOKENS]
        for name, values in _tensors([batch]).items()
        if name != "labels"
    }


class _Trainer(Trainer):  # type: ignore[misc]
    """With the loss of `BlockLoss`, and checkpoints that are whole or absent."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Summed over the batch and divided by the weights of the whole step, in all processes or
        on all GPUs of one, whose gradients are averaged."""
        del return_outputs
        loss = model(**inputs)["loss"] / num_items_in_batch
        return loss * max(self.accelerator.num_processes, self.args.n_gpu)

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
        """The weights of a step's tokens, where transformers counts those that are learned."""
        weight = sum(
            weight_of(batch["shift_labels"], batch["attention_mask"])
            for batch in batch_samples
        )
        return self.accelerator.gather(torch.as_tensor(weight, device=device)).sum()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called before the weights change: what is no number must not reach them."""
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise ModelError(
                f"the gradient of step {self.state.global_step + 1} is {float(norm)}: no weight "
                f"was changed by it; {self._last()} (a smaller learning rate may help)"
            )
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with self._whole(folder):
            super()._save_checkpoint(model, trial)

    def save_final(self) -> None:
        """What `final_weights` finds, in every process."""
        folder = Path(self.args.output_dir) / "final"
        with self._whole(folder), quiet():
            self.save_model(str(folder), _internal_call=True)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _whole(self, folder: Path) -> Iterator[None]:
        """A folder that is written to its end, and marked so, or removed."""
        try:
            yield
            if self.args.should_save:
                (folder / WHOLE).touch()
        except (
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # torch has RuntimeError for all
            shutil.rmtree(folder, ignore_errors=True)
            raise OutputError(
                f"{folder}: {first_line(error)}; {self._last()}"
            ) from None

    def _last(self) -> str:
        last = last_whole(Path(self.args.output_dir))
        if last is None:
            return "there is no checkpoint yet, begin again"
        return f"{last} is the last good checkpoint, and --resume goes on from it"


class _Watch(TrainerCallback):  # type: ignore[misc]
    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """After every step, before its checkpoint."""
        if "loss" not in logs:
            return  # the summary at the end
        step = Step(state.global_step, args.max_steps, logs["loss"])
        if self._on_step(step):
            control.should_save = control.should_training_stop = True
