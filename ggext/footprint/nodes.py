"""The nodes that the graph of any model is made of."""

from __future__ import annotations

from typing import NamedTuple

from ggext.footprint.allocator import Graph, Tensor
from ggext.footprint.architecture import Architecture
from ggext.footprint.cache import Context


class AttentionInputs(NamedTuple):
    """What attention reads in addition to its tokens: the cells where keys and values go, the mask,
    and the rotations that quantized caches get."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    key_rotation: Tensor | None
    value_rotation: Tensor | None


class Nodes:
    """Makes a graph's tensors; ``n`` tokens of the text at a time."""

    def __init__(self, arch: Architecture, context: Context) -> None:
        self.arch = arch
        self.context = context
        self.n = context.ubatch
        self.tokens = Tensor((self.n,))
        self.positions = Tensor((self.n,))
        self.graph = Graph()

    @staticmethod
    def op(shape: tuple[int, ...], *sources: Tensor, item: int = 4) -> Tensor:
        return Tensor(shape, sources, item=item)

    @staticmethod
    def same(*sources: Tensor) -> Tensor:
        """An operation whose result may take the place of a source."""
        return Tensor(sources[0].shape, sources, in_place=True)

    @staticmethod
    def view(source: Tensor, shape: tuple[int, ...], *, whole: bool = False) -> Tensor:
        view = Tensor(shape, (source,), base=source.base or source)
        view.whole = whole
        return view

    def store(self, rows: Tensor, places: Tensor) -> None:
        """Puts rows into a cache."""
        self.graph.expand(
            Tensor((1,), (self.view(rows, rows.shape), places), stored=True)
        )

    def norm(self, x: Tensor, name: str) -> Tensor:
        if not self.arch.has(f"{name}.weight"):
            return x
        root_mean_square = "attention.layer_norm_rms_epsilon" in self.arch.keys
        centred = self.same(x) if root_mean_square else self.op(x.shape, x)
        x = self.same(centred)
        return self.same(x) if self.arch.has(f"{name}.bias") else x

    def matrix(self, x: Tensor, name: str) -> Tensor:
        x = self.op((self.arch.rows(f"{name}.weight"), x.shape[1]), x)
        return self.same(x) if self.arch.has(f"{name}.bias") else x
