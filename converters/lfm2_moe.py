"""LFM 2 with experts: LFM 2 whose later layers choose experts by sigmoids and a learned
correction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, correction, experts, weight
from ggext.converters.lfm2 import Lfm2
from ggext.converters.llama import SIGMOID


class Lfm2Moe(Lfm2):
    arch = "lfm2moe"
    defaults = Lfm2.defaults | {
        "block_auto_adjust_ff_dim": False,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1792,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }

    def check(self) -> None:
        super().check()
        self.n_experts = self.config.integer("num_experts")
        self.n_expert_ff = self.config.integer("moe_intermediate_size")
        self.n_dense = self.config.integer("num_dense_layers", minimum=0)
        why = f"llama.cpp's architecture {self.arch}"
        self.require(
            "use_expert_bias", True, f"{why} adds a correction to the experts' scores"
        )
        self.require(
            "norm_topk_prob",
            True,
            f"{why} normalizes the weights of the chosen experts",
        )
        self.require(
            "routed_scaling_factor", 1.0, f"{why} does not scale the experts' sum"
        )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "leading_dense_block_count": self.n_dense,
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
            "expert_gating_func": SIGMOID,
        }

    def output(self) -> Iterator[TensorRule]:
        if self.config.flag("tie_word_embeddings"):
            yield from super().output()
        else:
            yield weight(
                "lm_head", self.vocab_size, self.n_embd, target="output.weight"
            )

    def feed_forward(self, module: str, layer: int) -> Iterator[TensorRule]:
        if layer < self.n_dense:
            yield from super().feed_forward(module, layer)
            return
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        yield correction(f"{module}.expert_bias", self.n_experts, layer)
        yield from experts(
            module,
            self.n_experts,
            self.n_embd,
            self.n_expert_ff,
            names="w1 w3 w2",
            target=f"blk.{layer}.ffn_{{}}_exps.weight",
        )


FAMILY = Lfm2Moe
