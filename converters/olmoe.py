"""OLMoE: OLMo 2's norms of all queries and keys, and routed experts in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, experts, weight
from ggext.converters.llama import QKV, Llama


class Olmoe(Llama):
    arch = "olmoe"
    defaults = {
        "rms_norm_eps": 1e-5,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    }
    biased = QKV
    free_head_dim = False
    needs_output = True
    needs_all_heads = True

    def check(self) -> None:
        super().check()
        self.n_experts = self.config.integer("num_experts", "num_local_experts")
        why = f"llama.cpp's architecture {self.arch} does not"
        self.require("clip_qkv", None, f"{why} clip queries, keys and values")
        self.require(
            "norm_topk_prob",
            False,
            f"{why} normalize the weights of the chosen experts",
        )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
        }

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.n_heads * self.head_dim)
        yield weight(f"{module}.k_norm", self.n_kv_heads * self.head_dim)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        yield from experts(module, self.n_experts, self.n_embd, self.n_ff)


FAMILY = Olmoe
