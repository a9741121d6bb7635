"""BLOOM: layer norms, biases everywhere, Q, K and V fused head by head, and attention that falls
with distance (ALiBi) in place of a rotation.

ggml looks GELU up in a table of float16, which costs the tiny models of the tests a KL of some
1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ggext.converters.base import TensorRule, grouped_to_blocks, with_bias
from ggext.converters.llama import LlamaWithLayerNorm

from ggext.checkpoint.config import Config

_TRAINED = 2048  # of all published models; the class has no key for it


class Bloom(LlamaWithLayerNorm):
    arch = "bloom"
    attribute_map = {
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "seq_length",
    }
    defaults = {
        "max_position_embeddings": _TRAINED,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "apply_residual_connection_post_layernorm": False,
    }
    epsilon = "layer_norm_epsilon"
    rotates_part = True
    free_head_dim = False
    embedding = "word_embeddings"

    def check(self) -> None:
        self.n_kv_heads = self.n_heads
        self.require(
            "apply_residual_connection_post_layernorm",
            False,
            f"llama.cpp's architecture {self.arch} adds what stands before the norm",
        )

    def read_n_ff(self, config: Config) -> int:
        del config  # the class has no key for it
        return int(4 * self.n_embd)

    def metadata(self) -> dict[str, Any]:
        context = self.config.integer("max_position_embeddings")
        return super().metadata() | {"context_length": context}

    def stored_name(self, name: str) -> str:
        """The published files leave ``transformer`` out."""
        return name.removeprefix("transformer.")

    def tensors(self) -> Iterator[TensorRule]:
        yield TensorRule((f"{self.embedding}.weight",), (self.vocab_size, self.n_embd))
        for kind in ("weight", "bias"):
            source = f"{self.embedding}_layernorm.{kind}"
            yield TensorRule((source,), (self.n_embd,), f"token_embd_norm.{kind}")
        yield from self.norm("ln_f")
        yield from self.output()
        order = partial(grouped_to_blocks, self.n_heads, self.n_heads, self.head_dim)
        for i in range(self.n_layers):
            block = f"h.{i}"
            yield from self.norms(block)
            fused = f"{block}.self_attention.query_key_value"
            yield from with_bias(fused, 3 * self.n_embd, self.n_embd, order=order)
            yield from with_bias(
                f"{block}.self_attention.dense", self.n_embd, self.n_embd
            )
            yield from with_bias(f"{block}.mlp.dense_h_to_4h", self.n_ff, self.n_embd)
            yield from with_bias(f"{block}.mlp.dense_4h_to_h", self.n_embd, self.n_ff)


FAMILY = Bloom
