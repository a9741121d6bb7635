"""The graph that llama.cpp builds for a batch, as far as its memory goes: sizes, order, and what
reads what.

It follows ``llama-graph.cpp`` and ``models/*.cpp``; what differs between architectures is read off
the tensors that the file has. Weights and cache lie elsewhere and are left out.
"""

from __future__ import annotations

from dataclasses import replace

from ggext.footprint.allocator import Graph, Tensor
from ggext.footprint.architecture import Architecture, Layer
from ggext.footprint.blocks import Blocks
from ggext.footprint.cache import Context, cells, is_quantized
from ggext.footprint.compressed import Compressed
from ggext.footprint.feed_forward import FeedForward
from ggext.footprint.indexed import Indexed
from ggext.footprint.nodes import AttentionInputs
from ggext.footprint.recurrent import Recurrent
from ggext.footprint.streams import Streams
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.llama_cpp_facts.recurrent import (
    CONVOLUTIONS,
    DELTA_NETS,
    MAMBAS,
    NEMOTRONS,
)
from ggext.rope.capabilities import unrotated

_SCALED_QUERIES = (
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
)  # before attention instead of in it

# the wanted tokens are picked after the last norm
_SELECT_NORMED = (*DELTA_NETS, *NEMOTRONS, "gemma4")


def compute_bytes(arch: Architecture, context: Context) -> int:
    """Bytes of llama.cpp's compute buffer on one device: a batch of prompt tokens at the end of a
    full context, with logits for each token."""
    if (
        arch.name in IN_BLOCKS
    ):  # made for an empty context, and made larger as a text grows
        return max(bytes_at(arch, context, reached) for reached in (0, context.cells))
    return _Builder(arch, context).build().peak()


def bytes_at(arch: Architecture, context: Context, reached: int) -> int:
    """Bytes that the buffer has where a model chooses blocks of a text of ``reached`` tokens.
    A token by itself has a graph of its own."""
    builders = [_Builder(arch, context), _Builder(arch, replace(context, batch=1))]
    for builder in builders:
        builder.reached = reached
    return max(builder.build().peak() for builder in builders)


def input_bytes(arch: Architecture, context: Context) -> int:
    """Bytes of the buffer in addition to the GPU's where that computes all layers: the graph's
    inputs and the embeddings."""
    return (
        _Builder(arch, context).build().leaf_bytes() + 4 * arch.width * context.ubatch
    )


class _Builder(Recurrent, FeedForward, Indexed, Compressed, Streams, Blocks):
    def __init__(self, arch: Architecture, context: Context) -> None:
        super().__init__(arch, context)
        self.selected = Tensor((self.n,))  # the tokens whose logits are wanted
        self.inputs = {
            slides: self._attention_inputs(slides)
            for slides in {layer.slides for layer in arch.layers if layer.kv_heads}
        }

    def build(self) -> Graph:
        current = self.graph.expand(self.op((self.arch.width, self.n), self.tokens))
        self.make_layer_inputs(current)
        self.graph.expand(
            Tensor((self.arch.width, self.n))
        )  # the other way in: embeddings instead of tokens
        if self.arch.streams:
            return self._of_streams(current)
        for i, layer in enumerate(self.arch.layers):
            current = self._layer(
                f"blk.{i}.", layer, current, last=i == len(self.arch.layers) - 1
            )
        kept: tuple[Tensor, ...] = ()
        if self._selects_last:
            kept = (current,)  # an output of the graph too
            current = self.op((self.arch.width, self.n), current, self.selected)
        current = self.norm(current, "output_norm")
        if self.arch.name in _SELECT_NORMED:
            kept = (current,)
            current = self.op((self.arch.width, self.n), current, self.selected)
        logits = self.op((self.arch.vocabulary, self.n), current, *kept)
        if "final_logit_softcapping" in self.arch.keys:
            for _ in ("scale", "tanh", "scale"):
                logits = self.same(logits)
        self.graph.expand(logits)
        return self.graph

    def _of_streams(self, embedded: Tensor) -> Graph:
        """The layers of several residual streams, and the logits."""
        mask = self.graph.expand(self.inputs[True].mask)
        self.make_compressors(mask)
        x = self.streams(embedded)
        for i, layer in enumerate(self.arch.layers):
            at = f"blk.{i}."
            mixture = self.before(at, "attn", x)
            part = self.norm(mixture.read, f"{at}attn_norm")
            part = self.compressed_attention(at, layer, part, self.positions)
            x = self.after(part, x, mixture)
            mixture = self.before(at, "ffn", x)
            for tensor in (x, mixture.back, mixture.mixed):
                self.graph.expand(tensor)
            part = self._feed_forward(at, self.norm(mixture.read, f"{at}ffn_norm"))
            x = self.after(part, x, mixture)
        x = self.norm(self.one_stream(x, self.selected), "output_norm")
        self.graph.expand(self.op((self.arch.vocabulary, self.n), x))
        return self.graph

    @property
    def _selects_last(self) -> bool:
        """Whether the wanted tokens are picked after the last layer instead of inside it."""
        return self.arch.name in ("gpt-oss", "step35")

    @property
    def _selects_in_layer(self) -> bool:
        return not self._selects_last and self.arch.name not in _SELECT_NORMED

    def _attention_inputs(self, slides: bool) -> AttentionInputs:
        layer = next(
            layer
            for layer in self.arch.layers
            if layer.slides == slides and layer.kv_heads
        )
        flash = self.context.flash_attention
        rows = 1 if flash else max(layer.value_row for layer in self.arch.layers)
        item = 2 if flash else 4
        mask = Tensor((cells(self.arch, layer, self.context), self.n), item=item)
        key = value = None
        if is_quantized(self.context.kv_type) and self.arch.latent is None:
            key = Tensor((layer.key & -layer.key,) * 2) if layer.key % 64 == 0 else None
            value = Tensor((64, 64)) if layer.value % 64 == 0 else None
        return AttentionInputs(
            Tensor((self.n,), item=8), Tensor((self.n, rows), item=8), mask, key, value
        )

    def _layer(self, at: str, layer: Layer, x: Tensor, *, last: bool) -> Tensor:
        residual, normed = x, self.norm(x, f"{at}attn_norm")
        x = self._mixed(at, layer, normed, residual)
        if self.arch.name in NEMOTRONS:
            return self.same(x, residual)
        if layer.recurs and layer.kv_heads:  # added before the last tokens are picked
            x = self.same(x, residual)
            x = self.op(x.shape, x, self.selected) if last else x
            return self.same(self._feed_forward(at, self.norm(x, f"{at}ffn_norm")), x)
        if last and self._selects_in_layer:
            x, residual, normed = (
                self.op(t.shape, t, self.selected) for t in (x, residual, normed)
            )
        follows, own = self._norm_follows, self.arch.has(f"{at}ffn_norm.weight")
        if follows:
            x = self.norm(x, f"{at}post_attention_norm")
        norm = f"{at}ffn_norm" if own or follows else f"{at}post_attention_norm"
        if not follows and not self.arch.has(
            f"{norm}.weight"
        ):  # attention and feed-forward side by side
            return self.same(self.same(self._feed_forward(at, normed), residual), x)
        first = self.arch.name in CONVOLUTIONS  # the residual is written over
        x = residual = self.same(residual, x) if first else self.same(x, residual)
        if self.arch.has(f"{at}pre_ffw_norm_2.weight"):
            x = self._beside_experts(at, x)
        else:
            x = self._feed_forward(at, self.norm(x, norm))
        x = self.norm(x, f"{at}post_ffw_norm")
        first = first or self.arch.name == "phi3"
        x = self.same(residual, x) if first else self.same(x, residual)
        return self.with_layer_input(at, x)

    def _mixed(self, at: str, layer: Layer, x: Tensor, before: Tensor) -> Tensor:
        """``before``: what was normed."""
        mamba = self.arch.name in MAMBAS
        if layer.recurs and layer.kv_heads:
            attended = self._attention(at, layer, x)
            x = self.norm(before, f"{at}attn_norm")  # which is made once more
            return self.same(attended, self.mamba2(at, layer, x))
        if layer.recurs and mamba:
            return self.mamba2(at, layer, x)
        if layer.recurs:
            return (
                self.delta_net(at, layer, x)
                if layer.state
                else self.convolution(at, layer, x)
            )
        if not layer.kv_heads:
            return self._feed_forward(at, x)
        attend = self._latent_attention if self.arch.latent else self._attention
        return attend(at, layer, x)

    @property
    def _norm_follows(self) -> bool:
        """Whether attention's result is normed before it is added (Gemma 2 and 3, OLMo 2)."""
        return self.arch.has("blk.0.post_attention_norm.weight") and self.arch.has(
            "blk.0.post_ffw_norm.weight"
        )

    def _attention(self, at: str, layer: Layer, x: Tensor) -> Tensor:
        normed, inputs = x, self.inputs[layer.slides]
        if layer.shares:
            q = self.view(
                self.matrix(x, f"{at}attn_q"), (layer.key, layer.heads, self.n)
            )
            q = self.same(self.norm(q, f"{at}attn_q_norm"), self.positions)
            x = self._scores(layer, self.graph.expand(q), inputs.mask)
            return self.matrix(x, f"{at}attn_output")
        q, k, v, gated = self._queries_keys_values(at, layer, x)
        if layer.indexed:
            x = self.blocks_attention(at, layer, x, (q, k, v), inputs)
            return self.matrix(x, f"{at}attn_output")
        if inputs.key_rotation is not None:
            q, k = (self.op(t.shape, t, inputs.key_rotation) for t in (q, k))
        if inputs.value_rotation is not None:
            v = self.op(v.shape, v, inputs.value_rotation)
        for tensor in (q, v, k):
            self.graph.expand(tensor)
        self.store(k, inputs.keys)
        self.store(v, inputs.values)
        x = self._scores(layer, q, inputs.mask)
        if inputs.value_rotation is not None:
            x = self.op(x.shape, x, inputs.value_rotation)
        if gated is not None:
            x = self.same(x, self.same(self.op(x.shape, self.view(gated, x.shape))))
        if self.arch.has(f"{at}attn_gate.weight"):
            x = self.same(x, self.same(self.matrix(normed, f"{at}attn_gate")))
        return self.matrix(x, f"{at}attn_output")

    def _queries_keys_values(
        self, at: str, layer: Layer, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """After them what holds the gates of their result too, where the queries' matrix makes
        those."""
        gated = None
        shapes = (
            (layer.heads, layer.key),
            (layer.kv_heads, layer.key),
            (layer.kv_heads, layer.value),
        )
        if self.arch.has(f"{at}attn_qkv.weight"):
            fused = self.matrix(x, f"{at}attn_qkv")
            q, k, v = (
                self.view(fused, (size, heads, self.n)) for heads, size in shapes
            )
        else:
            has_k, has_v = (self.arch.has(f"{at}attn_{name}.weight") for name in "kv")
            names = "qk" if has_k and not has_v else "qkv"
            parts = [self.matrix(x, f"{at}attn_{name}") for name in names]
            parts += parts[1:2] * (3 - len(parts))  # values are the keys
            if self._norms_heads_as_one:
                parts[:2] = (
                    self.norm(t, f"{at}attn_{name}_norm")
                    for t, name in zip(parts[:2], "qk", strict=True)
                )
            if parts[0].shape[0] == 2 * layer.heads * layer.key:
                gated = parts[0]
            q, k, v = (
                self.view(t, (size, heads, self.n))
                for t, (heads, size) in zip(parts, shapes, strict=True)
            )
        if not self._norms_heads_as_one:
            q, k = self.norm(q, f"{at}attn_q_norm"), self.norm(k, f"{at}attn_k_norm")
        if not unrotated(self.arch.name, self.arch.keys):
            q, k = (self.same(t, self.positions) for t in (q, k))
        if self.arch.name == "gemma4":  # which norms values too
            v = self.same(v)
        return (self.same(q) if self.arch.name in _SCALED_QUERIES else q), k, v, gated

    @property
    def _norms_heads_as_one(self) -> bool:
        norm = self.arch.tensors.get("blk.0.attn_q_norm.weight")
        return norm is not None and norm.shape[0] != self.arch.layers[0].key

    def _scores(self, layer: Layer, q: Tensor, mask: Tensor) -> Tensor:
        """Attention over the whole cache; gives back (values of all heads, tokens)."""
        latent = self.arch.latent
        value = latent.rank if latent else layer.value
        q = self.view(q, (layer.key, self.n, layer.heads))
        if self.context.flash_attention:
            halved = self._halved(layer.kv_heads, (layer.key, value), mask.shape[0])
            x = self.op((value, layer.heads, self.n), q, *halved, mask)
            if latent:
                x = self.op(
                    (latent.value, self.n, layer.heads),
                    self.view(x, (value, self.n, layer.heads)),
                )
                x = self.op(
                    (latent.value, layer.heads, self.n),
                    self.view(x, (latent.value, layer.heads, self.n)),
                )
            return self.graph.expand(self.view(x, (x.shape[0] * layer.heads, self.n)))
        count = mask.shape[0]
        x = self.op((count, self.n, layer.heads), q)
        if "attn_logit_softcapping" in self.arch.keys:
            for _ in ("scale", "tanh", "scale"):
                x = self.same(x)
        x = self.same(x, mask)
        # values after latent keys are a view of them, which has to be transposed here
        copied = (self.op((count, value), self.positions, item=2),) if latent else ()
        x = self.op((value, self.n, layer.heads), *copied, x)
        if latent:
            x = self.op((latent.value, self.n, layer.heads), x)
        rows = x.shape[0] * layer.heads
        return self.graph.expand(
            self.op((rows, self.n), self.view(x, (x.shape[0], layer.heads, self.n)))
        )

    def _halved(
        self, heads: int, sizes: tuple[int, int], count: int
    ) -> tuple[Tensor, ...]:
        """Keys and values of a float32 cache, which flash attention reads as float16."""
        if self.context.kv_type != "f32":
            return ()
        return tuple(
            self.op((size, count, heads), self.positions, item=2) for size in sizes
        )

    def _latent_attention(self, at: str, layer: Layer, x: Tensor) -> Tensor:
        latent = self.arch.latent
        assert latent is not None
        q = x
        if self.arch.has(f"{at}attn_q_a.weight"):
            q = self.norm(self.matrix(q, f"{at}attn_q_a"), f"{at}attn_q_a_norm")
            self.choose(at, layer, x, q)
            q = self.matrix(q, f"{at}attn_q_b")
        else:
            q = self.matrix(q, f"{at}attn_q")
        compressed = self.matrix(x, f"{at}attn_kv_a_mqa")
        q_rope = self.same(
            self.view(q, (latent.rope, layer.heads, self.n)), self.positions
        )
        absorbed = self.op(
            (latent.rank, self.n, layer.heads),
            self.view(q, (latent.head, self.n, layer.heads)),
        )
        absorbed = self.view(absorbed, (latent.rank, layer.heads, self.n))
        k_rope = self.same(
            self.view(compressed, (latent.rope, 1, self.n)), self.positions
        )
        values = self.norm(
            self.view(compressed, (latent.rank, self.n)), f"{at}attn_kv_a_norm"
        )
        values = self.view(values, (latent.rank, 1, self.n))
        q = self.op((layer.key, layer.heads, self.n), absorbed, q_rope)
        k = self.op((layer.key, 1, self.n), values, k_rope)
        inputs = self.inputs[layer.slides]
        for tensor in (q, values, k):
            self.graph.expand(tensor)
        self.store(k, inputs.keys)
        mask = self.mask_of_chosen(inputs.mask)
        return self.matrix(self._scores(layer, q, mask), f"{at}attn_output")
