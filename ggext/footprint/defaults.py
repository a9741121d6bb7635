"""What a context gets where nothing was chosen: the engine makes it so, and the plan counts it
so."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Protocol

from ggext.footprint.machine import CoreUse, core_quota, idle_cores

#: Within so many seconds a cancel must be seen while a text is read, which needs the end of an
#: operation at so many floating-point operations a second and thread
#: (`benchmarks/results/generate.md`).
SOON = 0.3
SPEED = 25e9

_BATCH_GPU = 512
_LARGER = (256, 128)
_EXPERTS = 8  # that a token meets, of a tensor that holds many
_SOME_THREADS = 4
_SMALL_MODEL = 20_000_000  # parameters


class Shaped(Protocol):
    """What is needed of `ggext.gguf.types.TensorInfo`."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def batch(tensors: Mapping[str, Shaped], threads: int, *, on_gpu: bool) -> int:
    """Tokens that are evaluated at a time, at most: after many the engine takes fewer
    (`ggext.runtime.batches`).

    A prefill is cancelled between two operations of the graph, so on a CPU the largest
    multiplication by weights must be short. 64 read within 5 % as fast as 128
    (`benchmarks/results/generate.md`); 32 with flash attention take four times as long.
    """
    if on_gpu:
        return _BATCH_GPU
    few = threads < _SOME_THREADS or 128 not in larger_batches(tensors, threads)
    return 64 if few else 128


def larger_batches(tensors: Mapping[str, Shaped], threads: int) -> list[int]:
    """More tokens at once, the most first, with which no multiplication by weights is long on a
    CPU. Threads wait for each other after each operation of a batch, however large it is."""
    sizes = (
        math.prod(info.shape[:2]) * (_EXPERTS if len(info.shape) > 2 else 1)
        for name, info in tensors.items()
        if len(info.shape) > 1 and name.startswith("blk.")
    )
    work = 2 * max(sizes, default=0)
    return [batch for batch in _LARGER if batch * work < SOON * SPEED * threads]


def threads(tensors: Mapping[str, Shaped]) -> int:
    """Threads to run a model with: the physical cores, but one for a model of a few million
    parameters, whose threads would only wait for each other (measured on 0.26 million and two busy
    cores: 3000 tokens a second with one thread, 270 with two)."""
    return (
        1
        if sum(math.prod(info.shape) for info in tensors.values()) < _SMALL_MODEL
        else physical_cores()
    )


def threads_now(threads: int, since: CoreUse | None = None) -> int:
    """Threads to compute with on the machine as it is, at most ``threads``: those of cores that
    other programs leave idle. llama.cpp's threads wait for each other, so one that gets no core
    stops all (measured with both of 2 cores busy: 22.9 tokens a second with one thread, 6.6 with
    two). ``since``: as `machine.idle_cores` has it."""
    idle = idle_cores(since) if threads > 1 else None
    return threads if idle is None else max(min(threads, round(idle)), 1)


def physical_cores() -> int:
    """Cores that this process may use, by its affinity and by the quota of its containers; two
    threads of one core count once, where Linux says so. Two threads on a quota of one core wait for
    each other: 18 to 23 tokens a second where one thread makes 37 to 40."""
    quota = core_quota()
    cores = cores_of_affinity()
    return cores if quota is None else max(min(cores, int(quota)), 1)


def cores_of_affinity() -> int:
    """Physical cores that this process may run on; all of the machine where the system does not
    say."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    siblings = set()
    for cpu in cpus:
        try:
            with open(
                f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            ) as file:
                siblings.add(file.read())
        except OSError:
            return len(cpus)
    return max(len(siblings), 1)
