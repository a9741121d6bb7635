"""ERNIE 4.5 with experts: ERNIE 4.5 whose later layers choose experts by their probabilities and a
learned correction, and one that is always asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, experts, weight
from ggext.converters.ernie4_5 import Ernie45
from ggext.converters.llama import gated


class Ernie45Moe(Ernie45):
    arch = "ernie4_5-moe"
    defaults = {
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "moe_num_experts": 64,
        "moe_k": 6,
        "moe_intermediate_size": 1536,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
        "moe_layer_end_index": 27,
    }

    def check(self) -> None:
        super().check()
        number = self.config.integer
        self.n_experts = number("moe_num_experts")
        self.n_expert_ff = number("moe_intermediate_size")
        self.n_shared_ff = (
            number("moe_num_shared_experts", minimum=0) * self.n_expert_ff
        )
        self.n_dense = number("moe_layer_start_index", minimum=0)
        why = f"llama.cpp's {self.arch} has experts in every layer after the first ones"
        self.require("moe_layer_interval", 1, why)
        last = number("moe_layer_end_index", minimum=-1)
        if -1 < last < self.n_layers - 1:
            raise self.refused(f"moe_layer_end_index is {last}; {why}")

    def stored_name(self, name: str) -> str:
        return name.replace(".mlp.gate.moe_statics.", ".mlp.moe_statics.")

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "leading_dense_block_count": self.n_dense,
            "interleave_moe_layer_step": 1,
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("moe_k", "num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
            "expert_shared_feed_forward_length": self.n_shared_ff,
        }

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if layer < self.n_dense:
            yield from super().mlp(module, layer)
            return
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        source = f"{module}.moe_statics.e_score_correction_bias"
        yield TensorRule(
            (source,),
            (1, self.n_experts),
            f"blk.{layer}.exp_probs_b.bias",
            written=(self.n_experts,),
        )
        yield from experts(module, self.n_experts, self.n_embd, self.n_expert_ff)
        if self.n_shared_ff:
            yield from gated(f"{module}.shared_experts", self.n_embd, self.n_shared_ff)


FAMILY = Ernie45Moe
