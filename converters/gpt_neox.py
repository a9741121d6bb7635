"""GPT-NeoX and Pythia: layer norms, biases everywhere, Q, K and V fused head by head.

The checkpoints' GELU is the exact one. llama.cpp's is the tanh approximation, looked up in a table
of float16. That costs the tiny models of the tests a KL of 7e-8. With the same table in
transformers it is below 5e-9.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ggext.converters.base import TensorRule, grouped_to_blocks, weight, with_bias
from ggext.converters.llama import WITHOUT_OUTPUT, LlamaWithLayerNorm


class GPTNeoX(LlamaWithLayerNorm):
    arch = "gptneox"
    defaults = {"layer_norm_eps": 1e-5, "use_parallel_residual": True}
    activations = ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh")
    rotates_part = True
    free_head_dim = False
    embedding = "gpt_neox.embed_in"
    head = "embed_out"

    def check(self) -> None:
        super().check()
        self.n_kv_heads = self.n_heads
        self.require(
            "attention_bias",
            True,
            f"llama.cpp's architecture {self.arch} has biases on all projections",
        )

    def stored_name(self, name: str) -> str:
        return (
            name.replace("lm_head.", "embed_out.")
            if name.startswith("lm_head.")
            else name
        )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "use_parallel_residual": self.config.flag("use_parallel_residual")
        }

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm("gpt_neox.final_layer_norm")
        source = self.embedding if self.is_tied else self.head
        yield weight(
            source,
            self.vocab_size,
            self.n_embd,
            target="output.weight",
            hint=WITHOUT_OUTPUT,
        )
        order = partial(grouped_to_blocks, self.n_heads, self.n_heads, self.head_dim)
        for i in range(self.n_layers):
            block = f"gpt_neox.layers.{i}"
            yield from self.norms(block)
            yield from with_bias(
                f"{block}.attention.query_key_value",
                3 * self.n_embd,
                self.n_embd,
                order=order,
            )
            yield from with_bias(f"{block}.attention.dense", self.n_embd, self.n_embd)
            yield from with_bias(f"{block}.mlp.dense_h_to_4h", self.n_ff, self.n_embd)
            yield from with_bias(f"{block}.mlp.dense_4h_to_h", self.n_embd, self.n_ff)


FAMILY = GPTNeoX
