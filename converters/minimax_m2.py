"""MiniMax M2: experts in every layer, chosen by sigmoids and a learned correction, and one norm of
all heads' queries together, as of their keys; a part of each head is rotated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, correction, experts, weight
from ggext.converters.llama import SIGMOID, Llama


class MiniMaxM2(Llama):
    arch = "minimax-m2"
    defaults = {"head_dim": 128, "num_local_experts": 256, "num_experts_per_tok": 8}
    biased = ()
    rotates_part = True

    def check(self) -> None:
        super().check()
        self.n_experts = self.config.integer("num_local_experts")
        why = f"llama.cpp's architecture {self.arch}"
        self.require("tie_word_embeddings", False, f"{why} reads an output matrix")
        self.require("scoring_func", "sigmoid", "transformers' minimax_m2 has sigmoid")

    def stored_name(self, name: str) -> str:
        return name.replace(".mlp.", ".block_sparse_moe.")

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_ff,
            "expert_gating_func": SIGMOID,
        }

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.n_heads * self.head_dim)
        yield weight(f"{module}.k_norm", self.n_kv_heads * self.head_dim)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        block = module.replace(".mlp", ".block_sparse_moe")
        yield weight(f"{block}.gate", self.n_experts, self.n_embd)
        source = f"{block}.e_score_correction_bias"
        yield correction(source, self.n_experts, layer)
        yield from experts(
            block, self.n_experts, self.n_embd, self.n_ff, names="w1 w3 w2"
        )


FAMILY = MiniMaxM2
