"""Tencent's Hy3: Llama's blocks with norms of each head's query and key, and routed experts, chosen
by sigmoids and a learned correction, next to a shared one. Its layers that predict a second token
are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ggext.converters.base import (
    TensorRule,
    correction,
    experts,
    names_each,
    weight,
)
from ggext.converters.llama import QKV, SIGMOID, Llama, gated

_DENSE, _SPARSE = "dense", "sparse"


class HyV3(Llama):
    """``sparse``: which layers have experts."""

    arch = "hy_v3"
    defaults = {
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "num_experts": 192,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "moe_intermediate_size": 1536,
        "router_scaling_factor": 2.826,
    }
    attribute_map = {"num_experts": "num_local_experts"}
    biased = QKV

    def check(self) -> None:
        super().check()
        number = self.config.integer
        kinds = self.config.values.get("mlp_layer_types")
        if kinds is None:
            kinds = [_DENSE] + [_SPARSE] * (self.n_layers - 1)
        if not names_each(kinds, self.n_layers, (_DENSE, _SPARSE)):
            raise self.refused(
                f"mlp_layer_types must name {_DENSE} or {_SPARSE} for each "
                f"of {self.n_layers} layers"
            )
        self.sparse = [kind == _SPARSE for kind in kinds]
        if not any(self.sparse):
            raise self.refused(
                f"mlp_layer_types names no layer with experts, of which "
                f"llama.cpp's architecture {self.arch} has some in all models"
            )
        self.n_experts = number("num_experts")
        self.n_expert_ff = number("moe_intermediate_size")
        self.n_shared_ff = number("num_shared_experts") * self.n_expert_ff
        self.require("route_norm", True, "transformers' hy_v3 normalizes the weights")

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
            "expert_shared_feed_forward_length": self.n_shared_ff,
            "expert_weights_scale": self.config.number("router_scaling_factor"),
            "expert_weights_norm": True,
            "expert_gating_func": SIGMOID,
        }

    def stored_name(self, name: str) -> str:
        """transformers 5 has other names in memory."""
        ours = name.replace(".mlp.gate.weight", ".mlp.router.gate.weight")
        ours = ours.replace(".mlp.e_score_correction_bias", ".mlp.expert_bias")
        return ours.replace(".mlp.shared_experts.", ".mlp.shared_mlp.")

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.head_dim)
        yield weight(f"{module}.k_norm", self.head_dim)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if not self.sparse[layer]:
            yield from super().mlp(module, layer)
            return
        target = f"blk.{layer}.ffn_{{}}.weight"
        yield weight(
            f"{module}.router.gate",
            self.n_experts,
            self.n_embd,
            target=target.format("gate_inp"),
        )
        rule = correction(f"{module}.expert_bias", self.n_experts, layer)
        # this loader has the name without a kind
        yield replace(rule, target=f"blk.{layer}.exp_probs_b")
        yield from experts(
            module,
            self.n_experts,
            self.n_embd,
            self.n_expert_ff,
            target=target.replace(".weight", "_exps.weight"),
        )
        shared = f"{module}.shared_mlp"
        for rule in gated(shared, self.n_embd, self.n_shared_ff):
            name = rule.sources[0].rpartition("_proj")[0].rpartition(".")[2]
            yield replace(rule, target=target.format(f"{name}_shexp"))


FAMILY = HyV3
