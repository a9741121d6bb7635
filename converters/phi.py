"""Phi 1, 1.5 and 2: one layer norm for attention and feed-forward, which run side by side, and
biases everywhere.

ggml looks GELU up in a table of float16. That costs the tiny models of the tests a KL of 5e-8.
With the same table in transformers it is below 5e-9.
"""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, with_bias
from ggext.converters.llama import LlamaWithLayerNorm


class Phi(LlamaWithLayerNorm):
    arch = "phi2"
    defaults = {"layer_norm_eps": 1e-5}
    activations = ("gelu_new", "gelu_pytorch_tanh")
    rotates_part = True
    free_head_dim = False
    needs_output = True
    final_norm = "model.final_layernorm"

    def check(self) -> None:
        super().check()
        why = f"llama.cpp's architecture {self.arch}"
        self.require("qk_layernorm", False, f"{why} has no norm of queries and keys")
        self.require(
            "tie_word_embeddings",
            False,
            f"{why} has an output matrix with a bias of its own",
        )

    def output(self) -> Iterator[TensorRule]:
        return with_bias("lm_head", self.vocab_size, self.n_embd)

    def norms(self, block: str) -> Iterator[TensorRule]:
        return self.norm(f"{block}.input_layernorm")

    def attention(self, module: str) -> Iterator[TensorRule]:
        for name, heads in (
            ("q_proj", self.n_heads),
            ("k_proj", self.n_kv_heads),
            ("v_proj", self.n_kv_heads),
        ):
            yield from with_bias(f"{module}.{name}", heads * self.head_dim, self.n_embd)
        yield from with_bias(f"{module}.dense", self.n_embd, self.n_embd)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield from with_bias(f"{module}.fc1", self.n_ff, self.n_embd)
        yield from with_bias(f"{module}.fc2", self.n_embd, self.n_ff)


FAMILY = Phi
