"""What a run computes on: the processes that `accelerate launch` started, and their devices."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ggext.errors import MissingExtraError

_PACKAGES = ("torch", "transformers", "peft", "accelerate")
_M_MMAP_THRESHOLD, _MMAP_FROM = -3, 1 << 20  # of mallopt(3); bytes


@dataclass(frozen=True)
class Machine:
    """One process of a run and its device."""

    # In words.
    name: str
    # All processes, this one's number, and among how many of them weights are divided.
    processes: int = 1
    rank: int = 0
    shards: int = 1
    # Bytes that are free there; None: the machine's own memory.
    memory: int | None = None
    # Whether it computes in bfloat16.
    bf16: bool = False
    gpu: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process reports, writes and evaluates."""
        return self.rank == 0


def check_packages() -> None:
    """Raises ``MissingExtraError`` before anything else is done."""
    for package in _PACKAGES:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingExtraError(error.name or package, "tune", "tuning") from None


def this_machine() -> Machine:
    """The device of this process. Raises ``MissingExtraError``."""
    check_packages()
    import torch

    processes = _environment("WORLD_SIZE", 1)
    rank = _environment("RANK", 0)
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    sharded = sharded or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    shards = processes if sharded else 1
    if os.environ.get("ACCELERATE_USE_CPU") == "true" or not torch.cuda.is_available():
        return Machine("this machine", processes, rank, shards)
    device = _environment("LOCAL_RANK", 0)
    return Machine(
        torch.cuda.get_device_name(device),
        processes,
        rank,
        shards,
        memory=torch.cuda.mem_get_info(device)[0],
        bf16=torch.cuda.is_bf16_supported(),
        gpu=True,
    )


def return_freed_memory() -> None:
    """Lets glibc give large tensors back to the system once they are freed.

    Left alone it raises its threshold to 32 MiB as they come and go, and what lies below that is
    kept in pieces that no later tensor fits: half as much again as a step needs. It is for the
    command: a library changes nothing of its process.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM)


def peak_memory(machine: Machine) -> int | None:
    """The most bytes that this process had, on its device; None: the system does not say.

    Not from getrusage: there a process begins with the peak of the one that started it.
    """
    import torch

    if machine.gpu:
        return int(torch.cuda.max_memory_reserved())
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return None if match is None else int(match[1]) << 10


def leave_group() -> None:
    """Ends what connects the processes of a run: what follows is the first one's alone."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
