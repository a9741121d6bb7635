"""Qwen 3.5 and 3.6 with experts: Qwen 3.5's layers with Qwen 3-Next's experts. Of a model that sees
too, the text part. Its layers that predict a second token are left out."""

from __future__ import annotations

from ggext.converters.qwen2_moe import GatedSharedExpert
from ggext.converters.qwen3_5 import ValuesInTurn


class Qwen35Moe(GatedSharedExpert, ValuesInTurn):
    arch = "qwen35moe"
    defaults = (
        GatedSharedExpert.defaults
        | ValuesInTurn.defaults
        | {
            "norm_topk_prob": True,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        }
    )
    normalizes = True


FAMILY = Qwen35Moe
