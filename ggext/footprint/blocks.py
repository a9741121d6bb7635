"""The graph of attention to blocks of tokens that an indexer chooses (``models/minimax-m3.cpp``).

A batch masks what was not chosen; a token by itself gathers what was."""

from __future__ import annotations

from typing import NamedTuple

from ggext.footprint.allocator import Tensor
from ggext.footprint.architecture import Layer
from ggext.footprint.cache import KV_TYPES, STEP, is_quantized
from ggext.footprint.nodes import AttentionInputs, Nodes
from ggext.gguf.types import F16, F32, tensor_nbytes


class _Inputs(NamedTuple):
    """Of all layers that choose."""

    # Where the indexer's keys go.
    places: Tensor
    # What is added to the score of each block.
    bias: Tensor
    # Which positions a token sees.
    seen: Tensor
    # The cell of each position.
    cells: Tensor
    # In a batch the block of each cell, else the cell of each position as float32.
    more: Tensor
    # In a batch the cells' mask as float32.
    mask: Tensor


class Blocks(Nodes):
    """Builds the choice of a layer's blocks and attention to them."""

    # Tokens of the text so far; None: it fills the context.
    reached: int | None = None
    block_inputs: _Inputs | None = None

    def blocks_attention(
        self,
        at: str,
        layer: Layer,
        x: Tensor,
        own: tuple[Tensor, Tensor, Tensor],
        attention: AttentionInputs,
    ) -> Tensor:
        """``own``: queries, keys and values. Gives back (values of all heads, tokens)."""
        inputs = self._inputs_of_blocks(attention.mask)
        query = self._index_key(at, "q", layer, x)
        self.store(self._index_key(at, "k", layer, x), inputs.places)
        q, k, v = own
        of_keys, of_values = attention.key_rotation, attention.value_rotation
        if of_keys is not None:
            q, k = (self.op(t.shape, t, of_keys) for t in (q, k))
        if of_values is not None:
            v = self.op(v.shape, v, of_values)
        for tensor in (q, k, v):
            self.graph.expand(tensor)
        self.store(k, attention.keys)
        self.store(v, attention.values)
        attend = self._gathered if self.n == 1 else self._masked
        x = attend(layer, q, query, inputs)
        if of_values is not None:
            x = self.op(x.shape, x, of_values)
        return x

    @property
    def _positions(self) -> int:
        """Padded to whole blocks."""
        reached = self.context.cells if self.reached is None else self.reached
        reached = max(STEP, -(-reached // STEP) * STEP)
        block = self._block
        return -(-reached // block) * block

    @property
    def _block(self) -> int:
        return int(self.arch.keys["attention.indexer.block_size"])

    def _inputs_of_blocks(self, mask: Tensor) -> _Inputs:
        if self.block_inputs is None:
            positions, n = self._positions, self.n
            more = positions if n == 1 else mask.shape[0]
            self.block_inputs = _Inputs(
                Tensor((n,), item=8),
                Tensor((positions // self._block, n)),
                Tensor((positions, n)),
                Tensor((positions,)),
                Tensor((more,)),
                self.op(mask.shape, mask),
            )
        return self.block_inputs

    def _index_key(self, at: str, kind: str, layer: Layer, x: Tensor) -> Tensor:
        """An indexer's queries (q) or key (k)."""
        x = self.matrix(x, f"{at}indexer.{kind}_proj")
        heads = x.shape[0] // layer.indexed
        x = self.view(x, (layer.indexed, heads, self.n), whole=True)
        return self.same(self.norm(x, f"{at}indexer.{kind}_norm"), self.positions)

    def _best_blocks(
        self, layer: Layer, query: Tensor, inputs: _Inputs, bias: Tensor
    ) -> Tensor:
        """The blocks that each head of keys takes."""
        positions, heads, n = self._positions, query.shape[1], self.n
        keys = self.op((layer.indexed, positions), inputs.cells)
        flat = self.view(query, (layer.indexed, heads * n))
        scores = self.op((positions, heads * n), keys, flat)
        rows = self.view(scores, (positions, heads, n))
        seen = self.view(inputs.seen, (positions, 1, n))
        rows = Tensor(rows.shape, (rows, seen), base=scores)
        count = positions // self._block
        best = self.same(self.op((count, heads, n), rows), bias)
        used = min(self.arch.keys["attention.indexer.top_k"], count)
        return self.op((used, heads, n), best)

    def _masked(
        self, layer: Layer, q: Tensor, query: Tensor, inputs: _Inputs
    ) -> Tensor:
        n, heads = self.n, query.shape[1]
        count = inputs.bias.shape[0]
        bias = self.view(inputs.bias, (count, 1, n), whole=True)
        best = self._best_blocks(layer, query, inputs, bias)
        mask = self._mask_of_blocks(best, bias, heads)
        cells = inputs.mask.shape[0]
        mask = self.op((heads * n, cells), mask, inputs.more)
        turned = self.op((cells, heads * n), mask)
        rows = self.view(turned, (cells, n, heads))
        seen = self.view(inputs.mask, (cells, n, 1))
        rows = Tensor(rows.shape, (rows, seen), base=turned)
        mask = self.op((cells, n, 1, heads), self.view(rows, rows.shape), item=2)
        x = self.op((layer.value, layer.heads, n), q, mask)
        rows = self.view(x, x.shape)
        if heads > 1:
            rows = self.op(x.shape, rows)
        return self.view(rows, (layer.value * layer.heads, n))

    def _mask_of_blocks(self, best: Tensor, bias: Tensor, heads: int) -> Tensor:
        """By block (tokens of all heads, blocks), from a mask that closes them all."""
        n, count = self.n, bias.shape[0]
        zeros = self.same(self.op(best.shape, best))
        zeros = self.view(zeros, (1, best.shape[0], heads * n))
        chosen = self.view(best, (best.shape[0], heads * n))
        closed = self.op((count, 1, n), self.same(bias), item=2)
        closed = self.op((count, heads, n), closed, item=2)
        rows = self.view(closed, (1, count, heads * n))
        opened = Tensor(rows.shape, (zeros, chosen, rows), base=closed)
        mask = self.op((count, n, heads), self.view(opened, closed.shape), item=2)
        flat = self.view(mask, (count, n * heads))
        return self.op((n * heads, count), flat, item=2)

    def _gathered(
        self, layer: Layer, q: Tensor, query: Tensor, inputs: _Inputs
    ) -> Tensor:
        heads, block = query.shape[1], self._block
        best = self._best_blocks(layer, query, inputs, inputs.bias)
        used = best.shape[0]
        count = block * used * heads
        first = self.same(self.op(best.shape, best))
        places = self.op((block, used, heads), self.view(first, (1, used, heads)))
        places = self.same(places, self.op((block,), inputs.cells))
        places = self.op((count,), self.view(places, (count,)))
        cells = self.op((1, count), inputs.more, places)
        cells = self.view(cells, (block, used, heads), whole=True)
        rows = self.same(self.same(cells), self.op((heads,), inputs.cells))
        rows = self.op((count,), self.view(rows, (count,)))
        kept = "f16" if is_quantized(self.context.kv_type) else self.context.kv_type
        sizes = (layer.key, layer.value)
        keys, values = (
            self._of_type(self.op((size, count), rows), KV_TYPES[kept])
            for size in sizes
        )
        mask = self.op((1, count), inputs.seen, places)
        mask = self._of_type(mask, F16)
        x = self.op((layer.value, layer.heads, 1), q, keys, values, mask)
        return self.view(x, (layer.value * layer.heads, 1))

    def _of_type(self, rows: Tensor, kind: int) -> Tensor:
        if kind == F32:
            return rows
        return self.op(rows.shape, rows, item=tensor_nbytes("row", (1,), kind))
