"""InternLM 2 and 2.5: Llama's blocks under other names, Q, K and V fused group by group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import WITHOUT_OUTPUT, Llama

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]


class Internlm2(Llama):
    arch = "internlm2"
    defaults = {"rms_norm_eps": 1e-6}
    biased = ()
    free_head_dim = False
    embedding = "model.tok_embeddings"

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield weight("model.norm", self.n_embd)
        source = self.embedding if self.is_tied else "output"
        yield weight(
            source,
            self.vocab_size,
            self.n_embd,
            target="output.weight",
            hint=WITHOUT_OUTPUT,
        )
        for i in range(self.n_layers):
            block = f"model.layers.{i}"
            target = f"blk.{i}.ffn"
            yield weight(f"{block}.attention_norm", self.n_embd)
            yield weight(f"{block}.ffn_norm", self.n_embd)
            yield from self._queries_keys_and_values(f"{block}.attention.wqkv", i)
            yield weight(f"{block}.attention.wo", self.n_embd, self.n_embd)
            for name, rows, columns, part in (
                ("w1", self.n_ff, self.n_embd, "gate"),
                ("w3", self.n_ff, self.n_embd, "up"),
                ("w2", self.n_embd, self.n_ff, "down"),
            ):
                module = f"{block}.feed_forward.{name}"
                yield weight(module, rows, columns, target=f"{target}_{part}.weight")

    def _queries_keys_and_values(self, module: str, layer: int) -> Iterator[TensorRule]:
        """A group holds the queries of one key and value, then these two."""
        n_groups = self.n_kv_heads
        each = self.n_heads // self.n_kv_heads
        size = self.head_dim
        width = self.n_embd

        def heads(rows: _Array, part: slice) -> _Array:
            return rows.reshape(n_groups, each + 2, size, width)[:, part]

        def adjacent(rows: _Array, part: slice) -> _Array:
            halves = heads(rows, part).reshape(-1, 2, size // 2, width)
            return halves.swapaxes(1, 2).reshape(-1, width)

        for name, n_heads, arranged in (
            ("q", self.n_heads, lambda rows: adjacent(rows, slice(0, each))),
            ("k", n_groups, lambda rows: adjacent(rows, slice(each, each + 1))),
            (
                "v",
                n_groups,
                lambda rows: heads(rows, slice(each + 1, None)).reshape(-1, width),
            ),
        ):
            yield weight(
                module,
                (self.n_heads + 2 * n_groups) * size,
                width,
                target=f"blk.{layer}.attn_{name}.weight",
                arranged=arranged,
                written=(n_heads * size, width),
            )


FAMILY = Internlm2
