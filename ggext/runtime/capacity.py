"""What a machine can do for a model: how long a context it holds, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ggext.errors import GgufError
from ggext.footprint.architecture import architecture
from ggext.footprint.machine import free_memory
from ggext.footprint.planner import Choices, Memories, Planner, Share
from ggext.runtime.model import Model

_SMALL_MODEL = 20_000_000  # parameters


def head_sizes(model: Model) -> tuple[int, int]:
    """Values of a head's key and of its value."""
    keys = model.header.arch_keys()
    heads = _first(keys.get("attention.head_count", 1))
    size = int(keys.get("embedding_length", 0)) // max(heads, 1)
    return int(keys.get("attention.key_length", size)), int(keys.get("attention.value_length", size))


def _first(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else max(value, default=1)


def most_heads(model: Model) -> int:
    """Heads of the layer that has most."""
    return _first(model.header.arch_keys().get("attention.head_count", 1))


@dataclass(frozen=True)
class Room:
    """The free memory, for contexts of a model on the CPU."""

    planner: Planner
    free: Memories

    def holds(self, tokens: int) -> bool:
        """Whether a context of so many tokens fits beside the weights."""
        return self.free.hold(*self._shares(tokens)) is not False

    def largest(self) -> int:
        """Tokens of the largest context that does, a multiple of 256."""
        return self.planner.largest(self.free) or 0

    def needed(self, tokens: int) -> int:
        """Bytes that a context takes beside the weights."""
        ram, _ = self._shares(tokens)
        return ram.total - ram.weights

    def cache(self, tokens: int) -> int:
        """Bytes of its keys and values."""
        return self._shares(tokens)[0].cache

    def _shares(self, tokens: int) -> tuple[Share, Share]:
        return self.planner.shares(self.planner.context(tokens))


def room(model: Model, choices: Choices) -> Room | None:
    """None where it is not known: on a GPU, which refuses at once (a CPU's memory the kernel promises generously and
    takes back by killing), and for architectures whose memory is not computed."""
    if model.offloads:
        return None
    try:
        return Room(Planner(model.header, architecture(model.header), choices, gpu_layers=0), Memories(free_memory()))
    except GgufError:
        return None


def batch_for(model: Model, threads: int) -> int:
    """Tokens to evaluate at a time.

    A prefill is cancelled between two operations of the graph, so on a CPU the largest of them shall take less than a
    tenth of a second even at 25 GFLOP/s a thread. Below 64 llama.cpp's flash attention is four times slower (measured
    on 51 million parameters; 64, 128 and 256 are alike within 5 %).
    """
    if model.offloads:
        return 512
    sizes = (info.shape[0] * info.shape[1] for name, info in model.header.tensors.items()
             if len(info.shape) > 1 and name.startswith("blk."))  # fmt: skip
    return 128 if 2 * 128 * max(sizes, default=0) < 0.1 * 25e9 * threads else 64


def threads_for(model: Model) -> int:
    """Threads to run the model with: the physical cores, but one for a model of a few million
    parameters, whose threads would only wait for each other (measured on 0.26 million and two busy
    cores: 3000 tokens a second with one thread, 270 with two)."""
    return 1 if model.n_params < _SMALL_MODEL else physical_cores()


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once, where Linux says so."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    siblings = set()
    for cpu in cpus:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                siblings.add(file.read())
        except OSError:
            return len(cpus)
    return max(len(siblings), 1)
