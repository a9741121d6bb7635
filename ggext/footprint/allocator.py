"""ggml's graph allocator (``ggml-alloc.c``) without the memory: which tensors share bytes, and the
peak.

A graph's tensors live from the node that makes them to the last that reads them, and are placed by
best fit. The peak is more than the largest sum of live tensors, because freed pieces do not always
fit the next; so the placement is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

ALIGNMENT = 32  # bytes; ggml's TENSOR_ALIGNMENT
_ENDLESS = 1 << 62


class Tensor:
    """A tensor of the graph, `shape` with the contiguous dimension first. ``base``: what it is a
    view of. ``whole``: such a view lies as a result of its shape would, so that one may take the
    base's place. ``stored``: it lies in memory of its own, such as the KV cache, and takes none of
    the graph's."""

    __slots__ = (
        "address",
        "base",
        "children",
        "in_place",
        "shape",
        "size",
        "sources",
        "stored",
        "views",
        "whole",
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        sources: tuple[Tensor, ...] = (),
        *,
        item: int = 4,
        in_place: bool = False,
        base: Tensor | None = None,
        stored: bool = False,
    ) -> None:
        self.shape = shape
        self.size = -(-math.prod(shape) * item // ALIGNMENT) * ALIGNMENT
        self.sources = sources
        self.in_place = in_place
        self.base = base
        self.whole = False
        self.stored = stored
        self.children = self.views = 0
        self.address: int | None = None


class Graph:
    """Nodes in the order of computation: `expand` appends what a tensor needs, depth first, then
    the tensor."""

    def __init__(self) -> None:
        self._nodes: list[Tensor] = []
        self._leaves: list[Tensor] = []
        self._seen: set[Tensor] = set()

    def expand(self, tensor: Tensor) -> Tensor:
        """Appends `tensor` and what it is made of, as far as it is not there yet; gives it back."""
        if tensor not in self._seen:
            self._seen.add(tensor)
            for source in tensor.sources:
                self.expand(source)
            (self._nodes if tensor.sources else self._leaves).append(tensor)
        return tensor

    def leaf_bytes(self) -> int:
        """Bytes of what the graph reads and does not make."""
        return sum(leaf.size for leaf in self._leaves)

    def peak(self) -> int:
        """Bytes of the buffer that the graph needs."""
        blocks = _Blocks()
        for leaf in self._leaves:
            leaf.address = blocks.take(leaf.size)
        for node in self._nodes:
            if node.base is not None:
                node.base.views += 1
            for source in node.sources:
                source.children += 1
        for node in self._nodes:
            _place(node, blocks)
            for tensor in _finished(node):
                blocks.give_back(tensor.address, tensor.size)
                tensor.address = None
        return blocks.peak


def _place(node: Tensor, blocks: _Blocks) -> None:
    if node.base is not None or node.stored:
        return
    if node.in_place:
        for source in node.sources:
            owner = _place_of(source)
            if owner is not None and source.shape == node.shape:
                assert owner.address is not None
                node.address = owner.address
                owner.address = None
                blocks.give_back(node.address + node.size, owner.size - node.size)
                return
    node.address = blocks.take(node.size)


def _place_of(source: Tensor) -> Tensor | None:
    """What holds the memory of a tensor that nothing reads after the next node."""
    if (source.children, source.views) != (1, 0):
        return None
    owner = source
    if source.base is not None:
        owner = source.base
        if not source.whole or (owner.children, owner.views) != (0, 1):
            return None
    return owner if owner.address is not None else None


def _finished(node: Tensor) -> Iterator[Tensor]:
    """Tensors that hold memory and that nothing reads after `node`."""
    for source in node.sources:
        source.children -= 1
        if source.children or source.views:
            continue
        owner = source
        if source.base is not None:
            owner = source.base
            owner.views -= 1
        if owner.address is not None and not owner.children and not owner.views:
            yield owner


class _Blocks:
    """Free pieces of an endless buffer, as [offset, size] by offset; the last one has no end."""

    def __init__(self) -> None:
        self._free: list[list[int]] = [[0, _ENDLESS]]
        self.peak = 0

    def take(self, size: int) -> int:
        inner = self._free[:-1]
        fitting = min(
            (b for b in reversed(inner) if b[1] >= size),
            key=lambda b: b[1],
            default=self._free[-1],
        )
        address = fitting[0]
        fitting[0] += size
        fitting[1] -= size
        if not fitting[1]:
            self._free.remove(fitting)
        self.peak = max(self.peak, address + size)
        return address

    def give_back(self, address: int | None, size: int) -> None:
        assert address is not None
        if not size:  # a matrix that has no rows, in a file that llama.cpp refuses
            return
        at = next(i for i, block in enumerate(self._free) if block[0] > address)
        self._free.insert(at, [address, size])
        for i in (at + 1, at):  # join with the next, then with the one before
            if i and self._free[i - 1][0] + self._free[i - 1][1] == self._free[i][0]:
                self._free[i - 1][1] += self._free[i][1]
                del self._free[i]
