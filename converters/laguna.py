"""Poolside's Laguna: windows in some layers, with a base, a share of what rotates and a number of
heads of their own, a gate on what attention gives, and routed experts next to a shared one.

llama.cpp blends YaRN between 32 turns and 1 whatever a file says: Laguna's own 64 and 1 are exact
in ggext's contexts alone, and the nearest in other programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ggext.converters.base import TensorRule, correction, experts, names_each, weight
from ggext.converters.llama import QKV, SIGMOID, Llama, gated

from ggext.rope.families import FULL, SLIDING


class Laguna(Llama):
    """``heads``: of queries, layer by layer. ``n_dense``: the layers without experts, which are the
    first ones."""

    arch = "laguna"
    defaults = {
        "head_dim": 128,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 40,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "moe_routed_scaling_factor": 1.0,
        "sliding_window": 512,
        "gating": True,
    }
    biased = QKV
    rotates_part = True

    def check(self) -> None:
        super().check()
        number = self.config.integer
        why = f"llama.cpp's architecture {self.arch}"
        self.n_experts = number("num_experts")
        self.n_expert_ff = number("moe_intermediate_size")
        self.n_shared_ff = number("shared_expert_intermediate_size")
        self.require("moe_router_logit_softcapping", 0, f"{why} caps no scores")
        self.require(
            "moe_apply_router_weight_on_input",
            False,
            f"{why} weights what experts give",
        )
        self.slides = self._sliding_layers()
        self.heads = self._heads_of_layers()
        self.n_dense = self._dense_layers(why)

    def _sliding_layers(self) -> list[bool]:
        slides = self.sliding_layers([False] * self.n_layers)
        kinds = [SLIDING if slide else FULL for slide in slides]
        values = {**self.config.values, "layer_types": kinds}
        self.config = replace(self.config, values=values)
        return slides

    def _heads_of_layers(self) -> list[int]:
        given = self.config.values.get("num_attention_heads_per_layer")
        heads = [self.n_heads] * self.n_layers if given is None else given
        whole = isinstance(heads, list) and len(heads) == self.n_layers
        if not whole or any(
            type(count) is not int or count < 1 or count % self.n_kv_heads
            for count in heads
        ):
            raise self.refused(
                f"num_attention_heads_per_layer must have a multiple of "
                f"num_key_value_heads {self.n_kv_heads} for each of {self.n_layers} layers"
            )
        return heads

    def _dense_layers(self, why: str) -> int:
        kinds = self.config.values.get("mlp_layer_types")
        if kinds is None:
            return 1
        known = names_each(kinds, self.n_layers, ("dense", "sparse"))
        if not known or sorted(kinds) != kinds:
            raise self.refused(
                f"mlp_layer_types must name dense and then sparse for "
                f"{self.n_layers} layers; {why} has experts in all layers from one on"
            )
        return int(kinds.count("dense"))

    def metadata(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "attention.head_count": self.heads,
            "leading_dense_block_count": self.n_dense,
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
            "expert_shared_feed_forward_length": self.n_shared_ff,
            "expert_weights_scale": self.config.number("moe_routed_scaling_factor"),
            "expert_weights_norm": True,
            "expert_gating_func": SIGMOID,
        }
        if any(self.slides):
            values |= {
                "attention.sliding_window": self.config.integer("sliding_window"),
                "attention.sliding_window_pattern": self.slides,
            }
        return super().metadata() | values

    def stored_name(self, name: str) -> str:
        name = name.replace(".mlp.shared_expert.", ".mlp.shared_experts.")
        return name.replace(".experts.e_score_c", ".gate.e_score_c")

    def attention_of(self, module: str, layer: int) -> Iterator[TensorRule]:
        heads = self.heads[layer]
        rows = heads * self.head_dim
        kv_rows = self.n_kv_heads * self.head_dim
        yield from self.project(module, "q_proj", rows, self.n_embd)
        yield from self.project(module, "k_proj", kv_rows, self.n_embd)
        yield from self.project(module, "v_proj", kv_rows, self.n_embd)
        yield from self.project(module, "o_proj", self.n_embd, rows)
        yield weight(f"{module}.q_norm", self.head_dim)
        yield weight(f"{module}.k_norm", self.head_dim)
        by_head = self.config.values.get("gating") in (True, "per-head")
        gates = heads if by_head else rows
        yield weight(f"{module}.g_proj", gates, self.n_embd)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if layer < self.n_dense:
            yield from super().mlp(module, layer)
            return
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        source = f"{module}.gate.e_score_correction_bias"
        yield correction(source, self.n_experts, layer)
        yield from experts(module, self.n_experts, self.n_embd, self.n_expert_ff)
        yield from gated(f"{module}.shared_experts", self.n_embd, self.n_shared_ff)


FAMILY = Laguna
