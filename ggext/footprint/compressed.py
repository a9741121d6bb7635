"""The graph of attention to compressed tokens next to a window (``models/deepseek4.cpp``, and
``llama-kv-cache-dsv4.cpp``, which says how large its inputs are at most)."""

from __future__ import annotations

from typing import NamedTuple

from ggext.footprint.allocator import Tensor
from ggext.footprint.architecture import Layer
from ggext.footprint.cache import KV_TYPES, compressed_cells, is_quantized
from ggext.footprint.nodes import Nodes
from ggext.gguf.types import tensor_nbytes
from ggext.llama_cpp_facts.compressed import ALL, CHOSEN

_LEAST = 64  # side of the smallest rotation of keys


class Kind(NamedTuple):
    """A kind of compressed cache."""

    name: str
    # Tokens that become one.
    ratio: int
    # Values of its keys.
    size: int
    # Whether a block takes half of what it is made of from the one before.
    overlap: bool

    @property
    def state_rows(self) -> int:
        return (1 + self.overlap) * self.ratio


class _Inputs(NamedTuple):
    """Of one kind of compressed cache."""

    # Of each token its place in its block.
    place: Tensor
    # Of the rows that the state keeps, where they come from and go to.
    kept_from: Tensor
    kept_to: Tensor
    # The rows of which blocks are made, where their keys go, and the blocks' positions.
    read: Tensor
    written: Tensor
    positions: Tensor
    mask: Tensor
    rotation: Tensor | None


class _Window(NamedTuple):
    places: Tensor
    mask: Tensor
    rotation: Tensor | None


class Compressed(Nodes):
    """Builds a layer's attention; the streams around it are ``streams``'s."""

    # By name, and the window's, made for the first layer that reads them.
    kinds: dict[str, tuple[Kind, _Inputs]]
    window: _Window

    def make_compressors(self, mask: Tensor) -> None:
        """``mask``: the window's."""
        arch = self.arch
        head = arch.layers[0].key
        index = int(arch.keys["attention.indexer.key_length"])
        kinds = (
            Kind("chosen", CHOSEN, head, overlap=True),
            Kind("all", ALL, head, overlap=False),
            Kind("indexer", CHOSEN, index, overlap=True),
        )
        self.kinds = {
            kind.name: (kind, self._inputs_of(kind, always=kind.size == index))
            for kind in kinds
        }
        self.window = _Window(
            Tensor((self.n,), item=8), mask, self._rotation(head, always=head == index)
        )

    def _inputs_of(self, kind: Kind, *, always: bool) -> _Inputs:
        blocks = self.n // kind.ratio + 1
        kept = min(self.n, kind.state_rows)
        half = self.context.flash_attention or kind.name == "indexer"
        return _Inputs(
            Tensor((self.n,)),
            Tensor((kept,)),
            Tensor((kept,)),
            Tensor((kind.state_rows * blocks,)),
            Tensor((blocks,), item=8),
            Tensor((blocks,)),
            Tensor(
                (compressed_cells(kind.ratio, self.context), self.n), item=4 - 2 * half
            ),
            self._rotation(kind.size, always=always),
        )

    def _rotation(self, size: int, *, always: bool) -> Tensor | None:
        """``always``: for a key of the indexer's size."""
        turned = is_quantized(self.context.kv_type) and size % _LEAST == 0
        return Tensor((max(size & -size, _LEAST),) * 2) if always or turned else None

    def compressed_attention(
        self, at: str, layer: Layer, x: Tensor, positions: Tensor
    ) -> Tensor:
        short = self.norm(self.matrix(x, f"{at}attn_q_a"), f"{at}attn_q_a_norm")
        q = self.matrix(short, f"{at}attn_q_b")
        q = self.view(q, (layer.key, layer.heads, self.n))
        q = self.same(self.same(q), positions)
        k = self.norm(self.matrix(x, f"{at}attn_kv"), f"{at}attn_kv_a_norm")
        k = self.same(self.view(k, (layer.key, 1, self.n)), positions)
        name = {0: "", CHOSEN: "chosen"}.get(layer.ratio, "all")
        if name:
            self._compress(f"{at}attn_compressor", name, x)
        if layer.indexed:
            self._compress(f"{at}indexer_compressor", "indexer", x)
        turned = self.window.rotation
        if turned is not None:
            q, k = (self.op(t.shape, turned, t) for t in (q, k))
        for tensor in (q, k):
            self.graph.expand(tensor)
        self.store(k, self.window.places)
        mask = self.kinds[name][1].mask if name else None
        if layer.indexed and mask is not None:
            best = self._best(at, layer, x, short, positions)
            mask = self._opened(mask, best)
        x = self._attended(layer, q, mask, positions)
        if turned is not None:
            x = self.op(x.shape, turned, x)
        x = self.view(x, (layer.key, layer.heads, self.n))
        return self._in_groups(at, layer, self.same(x, positions))

    def _in_groups(self, at: str, layer: Layer, x: Tensor) -> Tensor:
        """The way back to the width, first in groups of heads."""
        groups = self.arch.keys["attention.output_group_count"]
        rank = self.arch.keys["attention.output_lora_rank"]
        x = self.view(x, (layer.heads * layer.key // groups, self.n, groups))
        x = self.op((rank, self.n, groups), x)
        x = self.op((rank * groups, self.n), self.view(x, (rank, groups, self.n)))
        return self.matrix(x, f"{at}attn_output_b")

    def _attended(
        self, layer: Layer, q: Tensor, mask: Tensor | None, positions: Tensor
    ) -> Tensor:
        """Attention to the window's tokens and, where there is a ``mask`` of them, the compressed
        ones, whose keys are copied after the others. The keys are the values."""
        flash = self.context.flash_attention
        raw = self.window.mask
        count = raw.shape[0]
        keys = (
            positions  # stands for the cache, which takes nothing of the graph's memory
        )
        row = tensor_nbytes("key", (layer.key,), KV_TYPES[self.context.kv_type])
        if mask is not None:
            count += mask.shape[0]
            keys = self.op((row, count), positions, item=1)
            raw = self.op((count, self.n), raw, mask, item=4 - 2 * flash)
        q = self.view(q, (layer.key, self.n, layer.heads))
        width = layer.key * layer.heads
        if flash:
            read: tuple[Tensor, ...] = (keys,)
            if self.context.kv_type == "f32":
                read = tuple(self.op((layer.key, count), keys, item=2) for _ in "kv")
            x = self.op((layer.key, layer.heads, self.n), q, *read, raw)
            return self.graph.expand(self.view(x, (width, self.n)))
        values = self.op((row, count), keys, item=1)  # turned round
        scores = self.same(self.op((count, self.n, layer.heads), keys, q), raw)
        x = self.op((layer.key, self.n, layer.heads), values, scores)
        x = self.view(x, (layer.key, layer.heads, self.n))
        return self.graph.expand(self.op((width, self.n), x))

    def _best(
        self, at: str, layer: Layer, x: Tensor, short: Tensor, positions: Tensor
    ) -> Tensor:
        """The compressed tokens that an indexer chooses. ``short``: what queries are made of."""
        inputs = self.kinds["indexer"][1]
        heads = self.arch.keys["attention.indexer.head_count"]
        q = self.matrix(short, f"{at}indexer.attn_q_b")
        q = self.view(q, (layer.indexed, heads, self.n))
        q = self.same(q, positions)
        assert inputs.rotation is not None
        q = self.op(q.shape, inputs.rotation, q)
        weights = self.same(self.matrix(x, f"{at}indexer.proj"))
        scores = self.op(inputs.mask.shape, q, weights, inputs.mask)
        used = min(scores.shape[0], self.arch.keys["attention.indexer.top_k"])
        return self.op((used, self.n), self.op((used, self.n), scores))

    def _opened(self, mask: Tensor, best: Tensor) -> Tensor:
        """The mask that leaves the chosen ones alone."""
        item = 4 - 2 * self.context.flash_attention
        start = Tensor((1, *best.shape), item=item)
        zeros = Tensor(start.shape, (start,), item=item, in_place=True)
        closed = Tensor(mask.shape, (mask,), item=item, in_place=True)
        rows = self.view(closed, (1, *mask.shape))
        chosen = self.view(best, (*best.shape, 1))
        opened = Tensor(rows.shape, (zeros, chosen, rows), base=closed)
        opened = self.view(opened, mask.shape)
        return Tensor(mask.shape, (opened, mask), item=item, in_place=True)

    def _compress(self, at: str, name: str, x: Tensor) -> None:
        """What a layer adds to a compressed cache, and to the state of what is no whole block."""
        kind, inputs = self.kinds[name]
        keys, scores = self.matrix(x, f"{at}_kv"), self.matrix(x, f"{at}_gate")
        scores = self.same(scores, self.op(scores.shape, inputs.place))
        values, weights = (self._blocks(t, kind, inputs) for t in (keys, scores))
        made = self.same(values, self.same(weights))
        shape = (kind.size, 1, inputs.written.shape[0])
        summed = self.op((1, kind.size, shape[2]), made)
        made = self.norm(self.op(shape, self.view(summed, shape)), f"{at}_norm")
        made = self.same(made, inputs.positions)
        if inputs.rotation is not None:
            made = self.op(made.shape, inputs.rotation, made)
        self.store(made, inputs.written)
        kept = [
            self.op((t.shape[0], inputs.kept_from.shape[0]), t, inputs.kept_from)
            for t in (keys, scores)
        ]
        for rows in kept:
            self.store(rows, inputs.kept_to)

    def _blocks(self, rows: Tensor, kind: Kind, inputs: _Inputs) -> Tensor:
        """The rows of the state and the batch, block by block, a block's tokens first."""
        width, count = rows.shape[0], inputs.read.shape[0]
        blocks = inputs.written.shape[0]
        shape = (kind.state_rows, kind.size, blocks)
        joined = self.op((width, kind.state_rows + self.n), rows)
        if not kind.overlap:
            picks = self.op((width, count), joined, inputs.read)
            return self.op(shape, self.view(picks, shape))
        empty = self.view(self.same(self.view(joined, (width,))), (width, 1))
        joined = self.op((width, joined.shape[1] + 1), joined, empty)
        picks = self.op((width, count), joined, inputs.read)
        half = (kind.size, count // 2)
        halves = [self.op(half, self.view(picks, half)) for _ in "ab"]
        parts = [self.view(t, (kind.size, kind.ratio, blocks)) for t in halves]
        both = self.op((kind.size, kind.state_rows, blocks), *parts)
        return self.op(shape, self.view(both, shape))
