"""The graph of an indexer, which chooses the tokens that are attended to (``models/glm-dsa.cpp``,
and what ``llama-graph.cpp`` builds for ``llm_graph_input_attn_k_dsa``)."""

from __future__ import annotations

from typing import NamedTuple

from ggext.footprint.allocator import Tensor
from ggext.footprint.architecture import Layer
from ggext.footprint.nodes import Nodes


class IndexInputs(NamedTuple):
    """The cells where an indexer's keys go, its mask, and the matrix that turns its keys."""

    places: Tensor
    mask: Tensor
    rotation: Tensor


class Indexed(Nodes):
    """Builds the choice and the mask that it makes; attention itself is ``graph``'s."""

    # of the layer that chose last, (tokens chosen, tokens)
    chosen: Tensor | None = None
    index_inputs: IndexInputs | None = None

    def choose(self, at: str, layer: Layer, x: Tensor, queries: Tensor) -> None:
        """``queries``: the short vectors of which queries are made. A layer that does not choose
        takes what the last one chose."""
        size = layer.indexed
        if not size:
            return
        inputs = self._inputs(size)
        heads = self.arch.keys["attention.indexer.head_count"]
        q = self.matrix(queries, f"{at}indexer.attn_q_b")
        q = self.same(self.view(q, (size, heads, self.n)))
        k = self.matrix(x, f"{at}indexer.attn_k")
        k = self.same(self.same(self.op(k.shape, k)))  # a layer norm with its bias
        k = self.same(self.view(k, (size, 1, self.n)))
        q = self.op(q.shape, inputs.rotation, q)
        k = self.op(k.shape, inputs.rotation, k)
        self.store(k, inputs.places)
        weights = self.same(self.matrix(x, f"{at}indexer.proj"))
        cells = self.context.cells
        scores = self.op((cells, self.n), q, weights, inputs.mask)
        count = min(cells, self.arch.keys["attention.indexer.top_k"])
        best = self.op((count, self.n), scores)
        self.chosen = self.op((count, self.n), best)

    def _inputs(self, size: int) -> IndexInputs:
        if self.index_inputs is None:
            side = size & -size  # the largest power of two in it
            self.index_inputs = IndexInputs(
                Tensor((self.n,), item=8),
                Tensor((self.context.cells, self.n), item=2),
                Tensor((side, side)),
            )
        return self.index_inputs

    def mask_of_chosen(self, mask: Tensor) -> Tensor:
        """The mask of a layer, which leaves the chosen tokens alone."""
        chosen = self.chosen
        if chosen is None:
            return mask
        item = 2 if self.context.flash_attention else 4
        closed = self.op(mask.shape, mask, item=item)
        zeros = Tensor((1, *chosen.shape), (Tensor((1, *chosen.shape)),), in_place=True)
        opened = Tensor(mask.shape, (zeros, chosen, closed), base=closed)
        # not in its place, of which there is another view still
        return self.op(mask.shape, opened, mask, item=item)
