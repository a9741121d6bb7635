"""GPT-2 and what has its shape: layer norms, biases everywhere, and a learned vector for each
position, which no scaling makes longer.

ggml looks GELU up in a table of float16, which costs the tiny models of the tests a KL of some
1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import LlamaWithLayerNorm

from ggext.checkpoint.config import Config

_NAMES_OF_KEYS = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_act": "activation_function",
}


class Gpt2(LlamaWithLayerNorm):
    """``stores_columns``: matrices are stored as columns (transformers' ``Conv1D``)."""

    arch = "gpt2"
    attribute_map = _NAMES_OF_KEYS
    defaults = {
        "hidden_act": "gelu_new",
        "max_position_embeddings": 1024,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    activations = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
    epsilon = "layer_norm_epsilon"
    rotates_part = True
    free_head_dim = False
    embedding = "transformer.wte"
    stores_columns = True

    def check(self) -> None:
        super().check()
        why = f"llama.cpp's architecture {self.arch}"
        self.require(
            "scale_attn_weights", True, f"{why} scales scores by the size of a head"
        )
        self.require(
            "scale_attn_by_inverse_layer_idx", False, f"{why} scales layers alike"
        )
        self.require(
            "add_cross_attention", False, f"{why} attends to its own text alone"
        )
        self.n_kv_heads = self.n_heads
        self.n_positions = self.config.integer("max_position_embeddings")

    def read_n_ff(self, config: Config) -> int:
        return int(config.integer("n_inner", default=4 * self.n_embd))

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {"context_length": self.n_positions}

    def stored_name(self, name: str) -> str:
        """The published files leave the first word out."""
        return (
            name
            if name.startswith(("transformer.", "lm_head."))
            else f"transformer.{name}"
        )

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield weight("transformer.wpe", self.n_positions, self.n_embd)
        yield from self.norm("transformer.ln_f")
        yield from self.output()
        for i in range(self.n_layers):
            block = f"transformer.h.{i}"
            yield from self.norm(f"{block}.ln_1")
            yield from self.norm(f"{block}.ln_2")
            yield from self.queries_keys_and_values(f"{block}.attn.c_attn")
            yield from self.dense(f"{block}.attn.c_proj", self.n_embd, self.n_embd)
            yield from self.dense(f"{block}.mlp.c_fc", self.n_ff, self.n_embd)
            yield from self.dense(f"{block}.mlp.c_proj", self.n_embd, self.n_ff)

    def queries_keys_and_values(self, module: str) -> Iterator[TensorRule]:
        return self.dense(module, 3 * self.n_embd, self.n_embd)

    def dense(
        self, module: str, rows: int, columns: int, order: Any = None
    ) -> Iterator[TensorRule]:
        shape = (columns, rows) if self.stores_columns else (rows, columns)
        yield weight(module, *shape, transposed=self.stores_columns, rows=order)
        yield TensorRule((f"{module}.bias",), (rows,), rows=order)


FAMILY = Gpt2
