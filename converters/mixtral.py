"""Mixtral: Mistral with routed experts, which llama.cpp's architecture llama has too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, experts, weight
from ggext.converters.mistral import Mistral


class Mixtral(Mistral):
    defaults = {"rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2}

    def check(self) -> None:
        super().check()
        self.n_experts = self.config.integer("num_local_experts", "num_experts")

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
        }

    def stored_name(self, name: str) -> str:
        return name.replace(".mlp.", ".block_sparse_moe.")

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        block = module.replace(".mlp", ".block_sparse_moe")
        yield weight(f"{block}.gate", self.n_experts, self.n_embd)
        yield from experts(
            block, self.n_experts, self.n_embd, self.n_ff, names="w1 w3 w2"
        )


FAMILY = Mixtral
