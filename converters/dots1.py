"""dots.llm1: GLM-4.5's experts, and norms of each head's query and key."""

from __future__ import annotations

from ggext.converters.glm4_moe import Glm4Moe


class Dots1(Glm4Moe):
    arch = "dots1"
    defaults = Glm4Moe.defaults | {
        "rms_norm_eps": 1e-6,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "use_qk_norm": True,
    }
    needs_output = True
    needs_all_heads = True
    rotates_part = False

    def check(self) -> None:
        super().check()
        why = (
            f"llama.cpp's architecture {self.arch} attends to everything in all layers"
        )
        self.require("layer_types", ["full_attention"] * self.n_layers, why)
        if self.n_layers > self.config.integer("max_window_layers", default=62):
            self.require("sliding_window", None, why)


FAMILY = Dots1
