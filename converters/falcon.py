"""Falcon 7B, and the newer decoder of 40B, 180B and Falcon 2 11B: attention and feed-forward side
by side, Q, K and V fused group by group, no biases.

The checkpoints' GELU is the exact one. llama.cpp's is the tanh approximation, looked up in a table
of float16. That costs the tiny models of the tests a KL of 2e-7. With the same table in
transformers it is below 5e-9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ggext.converters.base import TensorRule, grouped_to_blocks, weight
from ggext.converters.llama import LlamaWithLayerNorm

from ggext.checkpoint.config import Config


class Falcon(LlamaWithLayerNorm):
    arch = "falcon"
    defaults = {
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "multi_query": True,
        "parallel_attn": True,
        "activation": "gelu",
        "max_position_embeddings": 2048,
    }
    activations = ("gelu", "gelu_new", "gelu_pytorch_tanh")
    epsilon = "layer_norm_epsilon"
    embedding = "transformer.word_embeddings"

    def __init__(self, config: Config) -> None:
        config = replace(config, values={**self.defaults, **config.values})
        self.newer = config.flag("new_decoder_architecture")
        heads = config.integer("num_attention_heads")
        groups = config.integer("num_kv_heads", default=heads)
        named = {
            "num_key_value_heads": groups
            if self.newer or not config.flag("multi_query")
            else 1,
            "intermediate_size": config.integer(
                "ffn_hidden_size", default=4 * config.integer("hidden_size")
            ),
            "hidden_act": config.string("activation"),
        }
        super().__init__(config.with_values(**named))

    def check(self) -> None:
        super().check()
        why = f"llama.cpp's architecture {self.arch}"
        self.require("alibi", False, f"{why} rotates; this model has ALiBi")
        self.require("bias", False, f"{why} has no biases")
        if not self.newer:
            self.require(
                "parallel_attn",
                True,
                f"{why} runs attention and feed-forward side by side",
            )

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm("transformer.ln_f")
        yield from self.output()
        order = partial(grouped_to_blocks, self.n_heads, self.n_kv_heads, self.head_dim)
        qkv_rows = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        for i in range(self.n_layers):
            block = f"transformer.h.{i}"
            yield from self.norms(block)
            yield weight(
                f"{block}.self_attention.query_key_value",
                qkv_rows,
                self.n_embd,
                rows=order,
            )
            yield weight(f"{block}.self_attention.dense", self.n_embd, self.n_embd)
            yield weight(f"{block}.mlp.dense_h_to_4h", self.n_ff, self.n_embd)
            yield weight(f"{block}.mlp.dense_4h_to_h", self.n_embd, self.n_ff)

    def norms(self, block: str) -> Iterator[TensorRule]:
        """The newer decoder has one for each of its two branches, unless it says that it has
        one."""
        if (
            self.newer
            and self.config.integer("num_ln_in_parallel_attn", default=2) == 2
        ):
            yield from self.norm(f"{block}.ln_mlp")
            yield from self.norm(f"{block}.ln_attn")
        else:
            yield from self.norm(f"{block}.input_layernorm")


FAMILY = Falcon
