"""Several processes: `accelerate launch` with the user's settings, less pairs that go wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ggext.errors import UsageError
from ggext.quality.texts import read_text

#: Set in the processes that were started: they do not start others.
_STARTED = "GGEXT_TUNE_STARTED"
_SIZES = ("cp_size", "sp_size")


def is_started() -> bool:
    """Whether this process is one of those that `launch` started."""
    return _STARTED in os.environ


def read_settings(path: Path) -> Mapping[str, Any]:
    """A file of `accelerate config`. Raises UsageError."""
    try:
        settings = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise UsageError(f"{path} is not YAML: {line:.100}") from None
    if not isinstance(settings, dict):
        raise UsageError(
            f"{path} holds no settings; accelerate config writes such a file"
        )
    return settings


def check_pairs(path: Path, *, lora: bool, jumps: bool, attention: str) -> None:
    """Raises UsageError for settings that would train something else, or fail late, with these
    options."""
    settings = read_settings(path)
    context, sequence = (_size(settings, name) for name in _SIZES)
    fsdp = settings.get("fsdp_config")
    version = fsdp.get("fsdp_version", 1) if isinstance(fsdp, dict) else 0
    if max(context, sequence) > 1 and jumps:
        why = (
            "context parallel drops the attention mask, and a jump in the positions would then "
            "hide what was before it: train long rows (--long)"
        )
    elif context > 1 and attention != "sdpa":
        why = f"context parallel needs the attention sdpa, and {attention} is asked for"
    elif context > 1 and lora and version == 2:
        why = (
            "an adapter under FSDP 2 with context parallel fails in the first step "
            "(huggingface/trl#4314): train all weights (--full)"
        )
    else:
        return
    raise UsageError(f"{path}: {why}")


def _size(settings: Mapping[str, Any], name: str) -> int:
    section = settings.get("parallelism_config")
    value = (
        section.get(f"parallelism_config_{name}", 1) if isinstance(section, dict) else 1
    )
    return value if isinstance(value, int) else 1


def _launcher(path: Path) -> tuple[list[str], dict[str, str]]:
    """The module that starts the processes, with its arguments, and what is set for them.

    On the cores of one machine accelerate starts several with MPI alone, and one without a word
    where that is missing; so torchrun does it there.
    """
    settings = read_settings(path)
    count = settings.get("num_processes", 1)
    alone = settings.get("num_machines", 1) == 1 and not settings.get("mpirun_config")
    if settings.get("use_cpu") is True and alone and count > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node"]
        return [*torchrun, str(count)], {"ACCELERATE_USE_CPU": "true"}
    return ["accelerate.commands.launch", "--config_file", str(path)], {}


def launch(path: Path, arguments: Sequence[str]) -> int:
    """Starts ``ggext tune`` with these arguments in all processes; the exit code."""
    launcher, environment = _launcher(path)
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "ggext", "tune", *arguments],
        env={**os.environ, _STARTED: "1", **environment},
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # they have it too, and end after a checkpoint
            continue
