"""Qwen 1.5's and 2's mixture of experts: Qwen 2 with routed experts and one that is always asked,
weighted by a gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, experts, weight
from ggext.converters.llama import QKV, Llama, gated
from ggext.converters.qwen2 import Qwen2


class QwenExperts(Llama):
    """``normalizes``: whether llama.cpp's architecture lets the weights of the chosen experts add
    to 1."""

    defaults = {"norm_topk_prob": False, "decoder_sparse_step": 1}
    normalizes = False

    def check(self) -> None:
        super().check()
        self.n_experts = self.config.integer("num_experts", "num_local_experts")
        self.n_expert_ff = self.config.integer("moe_intermediate_size")
        why = f"llama.cpp's architecture {self.arch}"
        self.require("decoder_sparse_step", 1, f"{why} has experts in every layer")
        self.require("mlp_only_layers", [], f"{why} has experts in every layer")
        does = "normalizes" if self.normalizes else "does not normalize"
        self.require(
            "norm_topk_prob",
            self.normalizes,
            f"{why} {does} the weights of the chosen experts",
        )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
        }

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        yield from experts(module, self.n_experts, self.n_embd, self.n_expert_ff)


class GatedSharedExpert(QwenExperts):
    """Next to the routed experts one that is always asked, weighted by a gate."""

    def check(self) -> None:
        super().check()
        self.n_shared_ff = self.config.integer("shared_expert_intermediate_size")

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_shared_feed_forward_length": self.n_shared_ff
        }

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        yield from super().mlp(module, layer)
        yield weight(
            f"{module}.shared_expert_gate", 1, self.n_embd, written=(self.n_embd,)
        )
        yield from gated(f"{module}.shared_expert", self.n_embd, self.n_shared_ff)


class Qwen2Moe(GatedSharedExpert, Qwen2):
    arch = "qwen2moe"
    defaults = QwenExperts.defaults | {"qkv_bias": True}
    bias_flags = dict.fromkeys(QKV, "qkv_bias")
    free_head_dim = False
    needs_output = True


FAMILY = Qwen2Moe
