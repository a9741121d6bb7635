"""DeepSeek 3 and R1, and Kimi K2: DeepSeek 2 whose experts are chosen by sigmoids and a learned
correction, of the best groups first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, correction
from ggext.converters.deepseek_v2 import DeepseekV2
from ggext.converters.llama import SIGMOID


class DeepseekV3(DeepseekV2):
    defaults = DeepseekV2.defaults | {
        "first_k_dense_replace": 3,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "routed_scaling_factor": 2.5,
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "rope_interleave": True,
    }
    scoring = "sigmoid"
    gating = SIGMOID

    def check_routing(self, why: str) -> None:
        self.require(
            "topk_method", "noaux_tc", f"{why} chooses by the best two of each group"
        )
        self.require("rope_interleave", True, f"{why} rotates neighbours")
        self.n_groups = self.config.integer("n_group")
        self.n_chosen = self.config.integer("topk_group")

    def metadata(self) -> dict[str, Any]:
        groups = {
            "expert_group_count": self.n_groups,
            "expert_group_used_count": self.n_chosen,
        }
        return super().metadata() | (groups if self.n_chosen < self.n_groups else {})

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        yield from super().mlp(module, layer)
        if layer >= self.n_dense:
            source = f"{module}.gate.e_score_correction_bias"
            yield correction(source, self.n_experts, layer)


FAMILY = DeepseekV3
