"""GLM-4.5, 4.6 and 4.7 and their Air: GLM-4's successors with routed experts, of which some are
always asked, after a few layers without experts. Their layers that predict a second token are left
out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, correction, experts, weight
from ggext.converters.llama import QKV, SIGMOID, Llama, gated


class Glm4Moe(Llama):
    arch = "glm4moe"
    defaults = {
        "rms_norm_eps": 1e-5,
        "first_k_dense_replace": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "use_qk_norm": False,
        "n_group": 1,
        "topk_group": 1,
    }
    biased = QKV
    rotates_part = True

    def check(self) -> None:
        super().check()
        number = self.config.integer
        self.n_dense = number("first_k_dense_replace", minimum=0)
        self.n_experts = number("n_routed_experts")
        self.n_shared = number("n_shared_experts")
        self.n_expert_ff = number("moe_intermediate_size")
        self.normed = self.config.flag("use_qk_norm")
        for name in ("n_group", "topk_group"):
            self.require(
                name,
                1,
                f"llama.cpp's architecture {self.arch} chooses among all experts",
            )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "leading_dense_block_count": self.n_dense,
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
            "expert_shared_count": self.n_shared,
            "expert_weights_scale": self.config.number("routed_scaling_factor"),
            "expert_weights_norm": self.config.flag("norm_topk_prob"),
            "expert_gating_func": SIGMOID,
        }

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        if self.normed:
            yield weight(f"{module}.q_norm", self.head_dim)
            yield weight(f"{module}.k_norm", self.head_dim)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if layer < self.n_dense:
            yield from super().mlp(module, layer)
            return
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        source = f"{module}.gate.e_score_correction_bias"
        yield correction(source, self.n_experts, layer)
        yield from experts(module, self.n_experts, self.n_embd, self.n_expert_ff)
        yield from gated(
            f"{module}.shared_experts", self.n_embd, self.n_shared * self.n_expert_ff
        )


FAMILY = Glm4Moe
