"""The trainer: the same losses after an interruption, numbers that are none, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from tuning import losses

from ggext.errors import ModelError, OutputError, UsageError
from ggext.tune.options import TuneOptions
from ggext.tune.run import Tuning

pytestmark = pytest.mark.slow

Make = Callable[..., TuneOptions]


def test_losses_fall_and_are_the_same_again(options: Make, tmp_path: Path) -> None:
    first = losses(options(steps=8, learning_rate=5e-3))
    again = losses(options(steps=8, learning_rate=5e-3, out=tmp_path / "again"))
    assert first == again
    assert len(first) == 8
    assert sum(first[-3:]) < sum(first[:3])


def test_what_is_computed_again_is_the_same(options: Make, tmp_path: Path) -> None:
    kept = losses(options(steps=2))
    again = losses(
        options(steps=2, gradient_checkpointing=True, out=tmp_path / "again")
    )
    assert again == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("lora", [4, None])
def test_a_stopped_run_goes_on_with_the_same_losses(
    options: Make, tmp_path: Path, lora: int | None
) -> None:
    whole = losses(options(lora=lora, out=tmp_path / "whole"))
    part = losses(options(lora=lora, save_every=3), stop_after=2)
    assert part == whole[:2]
    assert losses(options(lora=lora, save_every=3, resume=True)) == whole


def test_stages_have_each_their_factor_from_the_pretrained_length(
    options: Make,
) -> None:
    run = Tuning(options(stages=(2.0, 4.0), rows="pose"))
    assert [stage.rope.context for stage in run.plan.stages] == [128, 256]
    assert [stage.rope.trained for stage in run.plan.stages] == [64, 64]
    assert [stage.steps for stage in run.plan.stages] == [2, 2]
    run.begin()
    proofs: list[Any] = []
    assert len(run.train(proofs.append, lambda *_: None)) == 4
    assert len({proof.attention_factor for proof in proofs}) == 2


def test_another_request_does_not_go_on(options: Make) -> None:
    losses(options(), stop_after=1)
    with pytest.raises(UsageError, match=r"was started with learning_rate 0\.001"):
        Tuning(options(resume=True, learning_rate=2e-3)).begin()
    with pytest.raises(OutputError, match="holds a run already"):
        Tuning(options()).begin()


def test_there_is_nothing_to_go_on_with(options: Make) -> None:
    with pytest.raises(UsageError, match="holds no run to go on with"):
        Tuning(options(resume=True)).begin()


def test_a_gradient_that_is_no_number_changes_no_weight(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggext.tune import loss
    from ggext.tune.train import last_whole

    plain = loss.BlockLoss.forward
    calls: list[int] = []

    def broken(self: Any, *given: Any, **named: Any) -> Any:
        found = plain(self, *given, **named)
        calls.append(1)
        return {"loss": found["loss"] * (float("nan") if len(calls) > 6 else 1.0)}

    monkeypatch.setattr(loss.BlockLoss, "forward", broken)
    made = options(steps=9)
    with pytest.raises(
        ModelError, match=r"no weight was changed.*last good checkpoint"
    ):
        losses(made)
    last = last_whole(made.out / "stage-1")
    assert last is not None
    monkeypatch.setattr(loss.BlockLoss, "forward", plain)
    assert all(value == value for value in losses(options(steps=9, resume=True)))


def test_a_full_disk_leaves_the_last_whole_checkpoint(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ggext.tune.train import last_whole

    plain = torch.save
    saved: list[Any] = []

    def full(value: Any, file: Any, *given: Any, **named: Any) -> None:
        saved.append(file)
        if "checkpoint-3" in str(file):
            Path(file).write_bytes(b"part")
            raise RuntimeError(
                "[enforce fail at inline_container.cc] unexpected pos 64 vs 0"
            )
        plain(value, file, *given, **named)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"checkpoint-3: .*--resume goes on"):
        losses(options())
    assert (
        last_whole(options().out / "stage-1")
        == options().out / "stage-1" / "checkpoint-2"
    )
    assert not (options().out / "stage-1" / "checkpoint-3").exists()
    monkeypatch.setattr(torch, "save", plain)
    assert len(losses(options(resume=True))) == 4


_KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from ggext.rope.scaling import RopeScaling
from ggext.tune.options import TuneOptions
from ggext.tune.run import Tuning
import torch
torch.set_num_threads(1)
options = {options}
run = Tuning(options)
run.begin()
from transformers.trainer_callback import TrainerState
plain = TrainerState.save_to_json
def killed(self, path):  # in the middle of a checkpoint: weights are there, the state is not
    if self.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, path)
TrainerState.save_to_json = killed
run.train(lambda _: None, lambda *_: None)
"""


@pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on Windows"
)
def test_killed_within_a_checkpoint_it_goes_on_from_the_one_before(
    options: Make, tmp_path: Path
) -> None:
    whole = losses(options(out=tmp_path / "whole"))
    code = _KILLED.format(
        paths=[str(ROOT), str(ROOT / "tests" / "support")],
        options=repr(options()).replace("PosixPath", "Path"),
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert (options().out / "stage-1" / "checkpoint-3").exists()
    assert losses(options(resume=True)) == whole


def test_losses_in_blocks_are_the_models_own(checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from ggext.tune import loss as losses_module

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.arange(2, 62).reshape(2, 30)
    own = model(ids, labels=ids).loss.item() * ids.numel()  # a row counts by its length
    wanted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    block = losses_module.BlockLoss(model)
    for size in (320, 320 * 7, 1 << 24):
        losses_module.BLOCK_LOGITS, before = size, losses_module.BLOCK_LOGITS
        try:
            found = model(input_ids=ids, shift_labels=wanted)["loss"].item()
        finally:
            losses_module.BLOCK_LOGITS = before
        assert found == pytest.approx(own, rel=1e-5)
    block.restore()
    assert "logits" in model(ids)


def test_a_row_counts_by_its_length_whichever_part_is_learned() -> None:
    """Of a chat a few tokens are learned; in the sum of all losses they would be outweighed."""
    import torch

    from ggext.tune.loss import summed, token_weights, weight_of
    from ggext.tune.rows import IGNORED

    labels = torch.full((3, 8), IGNORED)
    labels[0, :7] = 1  # text
    labels[1, 2:4] = 1  # a chat
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 6:] = 0
    weights = token_weights(labels, mask)
    learned = labels != IGNORED
    assert [(weights * learned)[i].sum().item() for i in range(3)] == [8, 6, 0]
    assert weight_of(labels, mask) == 14
    logits = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    each = -logits.log_softmax(-1)[:, 1].reshape(3, 8)
    expected = 8 * each[0, :7].mean() + 6 * each[1, 2:4].mean()
    found = summed(logits, labels.flatten(), weights.flatten())
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_of_a_step_is_a_mean_over_all_its_rows(
    options: Make, tmp_path: Path
) -> None:
    """However the rows are divided among micro-batches."""
    made = options(steps=1, batch_tokens=1 << 14, learning_rate=1e-9)
    (step,) = losses(made)
    tuning = Tuning(replace(made, out=tmp_path / "other"))
    assert tuning.plan.accumulation == 2
    assert step == pytest.approx(_mean_loss(tuning), rel=1e-3)


def _mean_loss(tuning: Tuning) -> float:
    """By transformers' own losses, of the untuned model."""
    import torch
    from torch.nn.functional import cross_entropy

    from ggext.tune.model import load
    from ggext.tune.rows import IGNORED, Rows

    stage = tuning.plan.stages[0]
    rows = replace(tuning.plan.rows, target=stage.rope.context, seed=1)
    model = load(tuning.plan.folder, stage.rope)
    total = weight = 0.0
    made = Rows(tuning._tokens, rows, 2)
    for batch in (made[0], made[1]):
        given = {
            key: torch.from_numpy(batch[key])
            for key in ("input_ids", "position_ids", "attention_mask")
        }
        with torch.no_grad():
            logits = model(**given).logits
        for row, labels, mask in zip(
            logits, batch["shift_labels"], batch["attention_mask"], strict=True
        ):
            size = int(mask.sum())
            loss = cross_entropy(row, torch.from_numpy(labels), ignore_index=IGNORED)
            total += size * loss.item()
            weight += size
    return total / weight


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_caps_and_factors_of_logits_are_in_the_blocks(
    tmp_path: Path, family: str
) -> None:
    import torch
    from tiny import make_model
    from transformers import AutoModelForCausalLM

    from ggext.tune.loss import BlockLoss

    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / family, family))
    ids = torch.arange(2, 32).reshape(1, 30)
    block = BlockLoss(model)
    block.check({"input_ids": ids, "shift_labels": ids.roll(-1)})
    assert block.in_blocks


def test_logits_that_are_made_otherwise_are_found(checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from ggext.tune.loss import BlockLoss

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.config.logits_scaling = 2.0  # of which Llama knows nothing
    ids = torch.arange(2, 32).reshape(1, 30)
    block = BlockLoss(model)
    block.check({"input_ids": ids, "shift_labels": ids.roll(-1)})
    assert not block.in_blocks
