"""Several processes: gloo on one machine, and the pairs of settings that go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tuning import losses

from ggext.errors import UsageError
from ggext.tune.launch import check_pairs, read_settings
from ggext.tune.options import TuneOptions
from ggext.tune.train import last_whole

Make = Callable[..., TuneOptions]
TWO_ON_CPU = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_CPU",
    "num_processes": 2,
    "num_machines": 1,
    "machine_rank": 0,
    "use_cpu": True,
    "mixed_precision": "no",
    "main_training_function": "main",
    "rdzv_backend": "static",
    "same_network": True,
}


def settings(folder: Path, **values: Any) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"cp_size": 2}, {"jumps": True}, "drops the attention mask"),
        ({"sp_size": 2}, {"jumps": True}, "drops the attention mask"),
        (
            {"cp_size": 2},
            {"attention": "flash_attention_2"},
            "needs the attention sdpa",
        ),
        ({"cp_size": 2}, {"lora": True}, "an adapter under FSDP 2"),
    ],
)
def test_pairs_that_go_wrong_are_named(
    tmp_path: Path, values: dict[str, int], options: dict[str, Any], message: str
) -> None:
    path = settings(
        tmp_path,
        fsdp_config={"fsdp_version": 2},
        parallelism_config={
            f"parallelism_config_{key}": n for key, n in values.items()
        },
    )
    usual: dict[str, Any] = {"lora": False, "jumps": False, "attention": "sdpa"}
    check_pairs(path, **usual)
    with pytest.raises(UsageError, match=message):
        check_pairs(path, **{**usual, **options})


def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- 1")
    with pytest.raises(UsageError, match="holds no settings"):
        read_settings(path)
    path.write_text("a: [")
    with pytest.raises(UsageError, match="is not YAML"):
        read_settings(path)


def test_two_processes_train_as_one(options: Make, tmp_path: Path) -> None:
    """Each takes half of the rows of a step, and their gradients are averaged: the losses are those
    of one process."""
    import torch

    if (
        not torch.distributed.is_available()
        or not torch.distributed.is_gloo_available()
    ):
        pytest.skip("this torch has no gloo")
    made = options(steps=2, batch_tokens=1 << 14)
    command = [
        *(
            sys.executable,
            "-m",
            "ggext",
            "tune",
            str(made.model),
            "--yarn",
            "4",
            "--lora",
            "4",
        ),
        *("--text", str(made.texts[0]), "--steps", "2", "--batch-tokens", str(1 << 14)),
        *(
            "--window",
            "32",
            "--learning-rate",
            "0.001",
            "--save-every",
            "1",
            "--out",
            str(made.out),
        ),
        *("--no-gradient-checkpointing", "--train-only"),
        *("--launch", str(settings(tmp_path, **TWO_ON_CPU))),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": ""}
    environment.pop("MASTER_PORT")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout
    last = last_whole(made.out / "stage-1")
    assert last is not None
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    one = losses(options(steps=2, batch_tokens=1 << 14, out=tmp_path / "one"))
    assert [entry["loss"] for entry in history if "loss" in entry] == pytest.approx(
        one, rel=1e-4
    )
