"""Arcee's Trinity: windows in three of four layers, which alone rotate, a gate on what attention
gives, norms before and after each part, and routed experts next to shared ones.

llama.cpp takes every fourth layer for one without rotation and multiplies embeddings by the root of
their size. Where the model does not (`mup_enabled` is not true), the file's are divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, correction, experts, weight
from ggext.converters.llama import QKV, SIGMOID, Llama, gated

from ggext.rope.capabilities import capability_of

if TYPE_CHECKING:
    import numpy as np


class Afmoe(Llama):
    arch = "afmoe"
    defaults = {
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "intermediate_size": 6144,
        "num_dense_layers": 1,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_shared_experts": 2,
        "moe_intermediate_size": 1408,
        "route_scale": 1.0,
        "sliding_window": 1024,
        "global_attn_every_n_layers": 4,
    }
    biased = QKV

    def check(self) -> None:
        super().check()
        number = self.config.integer
        why = f"llama.cpp's architecture {self.arch}"
        self.n_dense = number("num_dense_layers", minimum=0)
        self.n_experts = number("num_experts")
        self.n_shared = number("num_shared_experts")
        self.n_expert_ff = number("moe_intermediate_size")
        self.windows = self.sliding_window(number("global_attn_every_n_layers"))
        step = capability_of(self.arch).unrotated_step
        slides = self.windows["attention.sliding_window_pattern"]
        if slides != [(i + 1) % step != 0 for i in range(self.n_layers)]:
            raise self.refused(
                f"layer_types or global_attn_every_n_layers say other "
                f"windows than in all but every {step}th layer; {why} rotates those"
            )
        for name, value in (("route_norm", True), ("score_func", "sigmoid")):
            self.require(name, value, f"transformers' afmoe has {value!r}")
        for name in ("n_group", "topk_group"):
            self.require(name, 1, f"{why} chooses among all experts")

    def metadata(self) -> dict[str, Any]:
        return (
            super().metadata()
            | self.windows
            | {
                "leading_dense_block_count": self.n_dense,
                "expert_count": self.n_experts,
                "expert_used_count": self.config.integer("num_experts_per_tok"),
                "expert_feed_forward_length": self.n_expert_ff,
                "expert_shared_count": self.n_shared,
                "expert_weights_scale": self.config.number("route_scale"),
                "expert_weights_norm": True,
                "expert_gating_func": SIGMOID,
            }
        )

    def tensors(self) -> Iterator[TensorRule]:
        grown = self.config.flag("mup_enabled")
        for rule in super().tensors():
            if rule.sources == (f"{self.embedding}.weight",) and not grown:
                rule = replace(
                    rule, computed=self._without_growth, undone=self._with_growth
                )
            yield rule
        if not grown and self.is_tied:  # the output matrix is not divided
            target = "output.weight"
            yield weight(self.embedding, self.vocab_size, self.n_embd, target=target)

    def _without_growth(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        divided: np.ndarray[Any, Any] = values / values.dtype.type(
            math.sqrt(self.n_embd)
        )
        return divided

    def _with_growth(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        grown: np.ndarray[Any, Any] = values * values.dtype.type(math.sqrt(self.n_embd))
        return grown

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from super().norms(block)
        yield from self.norm(f"{block}.pre_mlp_layernorm")
        yield from self.norm(f"{block}.post_mlp_layernorm")

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.head_dim)
        yield weight(f"{module}.k_norm", self.head_dim)
        yield weight(f"{module}.gate_proj", self.n_heads * self.head_dim, self.n_embd)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if layer < self.n_dense:
            yield from super().mlp(module, layer)
            return
        yield weight(f"{module}.router.gate", self.n_experts, self.n_embd)
        yield correction(f"{module}.expert_bias", self.n_experts, layer)
        yield from experts(module, self.n_experts, self.n_embd, self.n_expert_ff)
        yield from gated(
            f"{module}.shared_experts", self.n_embd, self.n_shared * self.n_expert_ff
        )


FAMILY = Afmoe
