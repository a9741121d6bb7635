"""The graph of several residual streams next to each other (``models/deepseek4.cpp``)."""

from __future__ import annotations

from typing import NamedTuple

from ggext.footprint.allocator import Tensor
from ggext.footprint.nodes import Nodes


class Mixture(NamedTuple):
    """Made of the streams before a part of a layer: what the part reads, how its result goes back
    into them, and how they mix."""

    read: Tensor
    back: Tensor
    mixed: Tensor


class Streams(Nodes):
    """Builds what goes from the streams to a part of a layer, and back."""

    def streams(self, embedded: Tensor) -> Tensor:
        """``embedded``: the tokens' embeddings, which all streams begin with."""
        x = self.view(embedded, (self.arch.width, 1, self.n))
        return self.op((self.arch.width, self.arch.streams, self.n), x)

    def before(self, at: str, kind: str, x: Tensor) -> Mixture:
        """``kind``: attn or ffn."""
        count = self.arch.streams
        mixes, shape = self._mixes(x, f"{at}hc_{kind}_fn"), (count, self.n)
        read, back = (
            self.same(self.same(self.op(shape, self.view(mixes, shape)))) for _ in "ab"
        )
        mixed = self.op((count, count, self.n), mixes)
        return Mixture(self.op((self.arch.width, self.n), x, read), back, mixed)

    def after(self, x: Tensor, residual: Tensor, mixture: Mixture) -> Tensor:
        return self.op(residual.shape, x, residual, mixture.back, mixture.mixed)

    def one_stream(self, x: Tensor, selected: Tensor) -> Tensor:
        """Of the wanted tokens, from which logits are made."""
        width, count = self.arch.width, self.arch.streams
        rows = (width * count, self.n)
        x = self.op(rows, self.view(x, rows), selected)
        x = self.view(x, (width, count, self.n))
        read = self.same(self._mixes(x, "output_hc_fn"))
        total: Tensor | None = None
        for _ in range(count):
            weight = self.view(read, (1, self.n))
            part = self.op((width, self.n), self.view(x, (width, self.n)), weight)
            total = part if total is None else self.same(total, part)
        assert total is not None
        return total

    def _mixes(self, x: Tensor, name: str) -> Tensor:
        flat = self.view(x, (self.arch.width * self.arch.streams, self.n))
        return self.op((self.arch.rows(f"{name}.weight"), self.n), self.same(flat))
