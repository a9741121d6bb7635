"""GLM-4.7-Flash: DeepSeek 3's attention and experts with GLM's sizes."""

from __future__ import annotations

from ggext.converters.base import names_each
from ggext.converters.deepseek_v3 import DeepseekV3


class Glm4MoeLite(DeepseekV3):
    defaults = DeepseekV3.defaults | {
        "rms_norm_eps": 1e-5,
        "n_shared_experts": 1,
        "n_routed_experts": 64,
        "routed_scaling_factor": 1.8,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1536,
    }

    def check(self) -> None:
        kinds = self.config.values.get("mlp_layer_types")
        if kinds is None:
            kinds = ["dense"] + ["sparse"] * (self.n_layers - 1)
        n_dense = kinds.count("dense") if isinstance(kinds, list) else 0
        regular = kinds == ["dense"] * n_dense + ["sparse"] * (self.n_layers - n_dense)
        if not regular or not names_each(kinds, self.n_layers, ("dense", "sparse")):
            raise self.refused(
                f"mlp_layer_types is {kinds!r}; llama.cpp's architecture "
                f"{self.arch} has dense layers first and sparse ones after them"
            )
        self.config = self.config.with_values(first_k_dense_replace=n_dense)
        super().check()


FAMILY = Glm4MoeLite
