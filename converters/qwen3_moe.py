"""Qwen 3's mixture of experts: Qwen 3 with routed experts, of which the chosen ones' weights may be normalized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, stacked, weight
from ggext.converters.qwen3 import Qwen3


class Qwen3Moe(Qwen3):
    arch = "qwen3moe"

    def check(self) -> None:
        super().check()
        self.n_experts = self.config.integer("num_experts", "num_local_experts")
        self.n_expert_ff = self.config.integer("moe_intermediate_size")
        why = f"llama.cpp's architecture {self.arch}"
        self.require("decoder_sparse_step", 1, f"{why} has experts in every layer")
        self.require("mlp_only_layers", [], f"{why} has experts in every layer")
        self.require("norm_topk_prob", True, f"{why} normalizes the weights of the chosen experts")

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
        }

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        for projection, shape in (
            ("gate_proj", (self.n_expert_ff, self.n_embd)),
            ("up_proj", (self.n_expert_ff, self.n_embd)),
            ("down_proj", (self.n_embd, self.n_expert_ff)),
        ):
            yield stacked(f"{module}.experts.{{}}.{projection}", self.n_experts, *shape)


FAMILY = Qwen3Moe
