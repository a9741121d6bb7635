"""What a machine can do for a model: how long a context it holds, and with how many threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggext.errors import GgufError
from ggext.footprint import defaults, speeds
from ggext.footprint.architecture import architecture
from ggext.footprint.cache import STEP, Context
from ggext.footprint.machine import free_memory
from ggext.footprint.planner import Choices, Memories, Planner, Share
from ggext.runtime.model import Model


def head_sizes(model: Model) -> tuple[int, int]:
    """Values of a head's key and of its value."""
    keys = model.header.arch_keys()
    heads = _first(keys.get("attention.head_count", 1))
    size = int(keys.get("embedding_length", 0)) // max(heads, 1)
    return int(keys.get("attention.key_length", size)), int(
        keys.get("attention.value_length", size)
    )


def _first(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else max(value, default=1)


@dataclass(frozen=True)
class Room:
    """The memory for contexts of a model on the CPU. ``free``: bytes that are free now, None: not
    known. ``copied``: bytes of the model's weights that were taken from it, which the planner
    counts too."""

    planner: Planner
    free: int | None
    copied: int

    def holds(self, tokens: int) -> bool:
        """Whether a context of so many tokens fits in addition to the weights."""
        return self._memories.hold(*self._shares(tokens)) is not False

    def largest(self) -> int:
        """Tokens of the largest context that a session takes by itself, a multiple of 256."""
        return self.planner.automatic(self._memories) or 0

    def most(self) -> int:
        """Tokens of the largest context that fits, whatever the file is made for."""
        return self.planner.largest(self._memories) or 0

    def half(self) -> int:
        """Tokens of the context that a session takes by itself and that leaves half of the memory
        to others."""
        if self.free is None:
            return self.largest()
        weights = self._shares(STEP)[0].weights - self.copied
        return replace(self, free=(self.free + weights) // 2).largest()

    def needed(self, tokens: int) -> int:
        """Bytes that a context takes in addition to the weights."""
        ram, _ = self._shares(tokens)
        return ram.total - ram.weights

    def cache(self, tokens: int) -> int:
        """Bytes of its keys and values."""
        return self._shares(tokens)[0].cache

    def context(self, tokens: int) -> Context:
        """How a context of so many tokens is made."""
        return self.planner.context(tokens, self._memories)

    @property
    def _memories(self) -> Memories:
        free = None if self.free is None else self.free + self.copied
        return Memories(free)

    def _shares(self, tokens: int) -> tuple[Share, Share]:
        return self.planner.shares(self.context(tokens))


def room(model: Model, choices: Choices) -> Room | None:
    """None where it is not known: on a GPU, which refuses at once (a CPU's memory the kernel
    promises generously and takes back by killing), and for architectures whose memory is not
    computed."""
    if model.offloads:
        return None
    header = model.all_parts
    try:
        arch = architecture(header)
        return Room(
            Planner(header, arch, choices, 0, speeds.flash_until(arch)),
            free_memory(),
            model.copied,
        )
    except GgufError:
        return None


def batch_for(model: Model, threads: int) -> int:
    """Tokens to evaluate at a time."""
    return defaults.batch(model.all_parts.tensors, threads, on_gpu=model.offloads)


def threads_for(model: Model) -> int:
    """Threads to run the model with."""
    return defaults.threads(model.all_parts.tensors)
