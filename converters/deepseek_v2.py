"""DeepSeek 2: attention over one compressed key and value for all heads (MLA), and routed experts
of which some are always asked, after a few layers without experts.

llama.cpp attends in the compressed space: of ``kv_b_proj`` it takes the keys' part, transposed,
into the queries and the values' part out of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, experts, weight
from ggext.converters.llama import SOFTMAX, WithLatents, gated

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]

_LITE_LAYERS = (
    26,
    27,
)  # llama.cpp believes that models of so many layers do not compress their queries


class DeepseekV2(WithLatents):
    arch = "deepseek2"
    defaults = {
        "rms_norm_eps": 1e-6,
        "first_k_dense_replace": 0,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "moe_intermediate_size": 1407,
    }
    scoring = "softmax"
    gating = SOFTMAX

    def check(self) -> None:
        super().check()
        number = self.config.integer
        lite = self.n_layers in _LITE_LAYERS
        if "q_lora_rank" in self.config.values:
            self.q_rank = number("q_lora_rank", default=None)
        else:  # transformers' default, which the lite model is not
            self.q_rank = None if lite else 1536
        self.kv_rank = number("kv_lora_rank")
        self.n_plain = number("qk_nope_head_dim")
        self.n_rotated = number("qk_rope_head_dim")
        self.n_value = number("v_head_dim")
        self.n_dense = number("first_k_dense_replace", minimum=0)
        self.n_experts = number("n_routed_experts")
        self.n_shared = number("n_shared_experts")
        self.n_expert_ff = number("moe_intermediate_size")
        why = f"llama.cpp's architecture {self.arch}"
        self.require(
            "moe_layer_freq",
            1,
            f"{why} has experts in every layer after the first ones",
        )
        self.require(
            "scoring_func",
            self.scoring,
            f"{self.config.string('model_type')} has {self.scoring}",
        )
        if lite and self.q_rank is not None:
            raise self.refused(
                f"q_lora_rank is {self.q_rank} in {self.n_layers} layers; "
                f"{why} takes such a "
                "model for one without it"
            )
        self.check_routing(why)

    def check_routing(self, why: str) -> None:
        self.require(
            "topk_method",
            "greedy",
            f"{why} chooses groups of experts otherwise (by their best two)",
        )
        self.require(
            "norm_topk_prob",
            False,
            "transformers' deepseek_v2 does not normalize the chosen weights",
        )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "attention.head_count_kv": 1,
            "attention.key_length": self.kv_rank + self.n_rotated,
            "attention.value_length": self.kv_rank,
            "attention.key_length_mla": self.n_plain + self.n_rotated,
            "attention.value_length_mla": self.n_value,
            "attention.q_lora_rank": self.q_rank or 0,
            "attention.kv_lora_rank": self.kv_rank,
            "leading_dense_block_count": self.n_dense,
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
            "expert_shared_count": self.n_shared,
            "expert_weights_scale": self.config.number("routed_scaling_factor"),
            "expert_weights_norm": self.config.flag("norm_topk_prob"),
            "expert_gating_func": self.gating,
        }

    def attention(self, module: str) -> Iterator[TensorRule]:
        q_rows = self.n_heads * (self.n_plain + self.n_rotated)
        if self.q_rank is None:
            yield weight(f"{module}.q_proj", q_rows, self.n_embd)
        else:
            yield weight(f"{module}.q_a_proj", self.q_rank, self.n_embd)
            yield weight(f"{module}.q_a_layernorm", self.q_rank)
            yield weight(f"{module}.q_b_proj", q_rows, self.q_rank)
        yield weight(
            f"{module}.kv_a_proj_with_mqa", self.kv_rank + self.n_rotated, self.n_embd
        )
        yield weight(f"{module}.kv_a_layernorm", self.kv_rank)
        yield from self._keys_and_values(module)
        yield weight(f"{module}.o_proj", self.n_embd, self.n_heads * self.n_value)

    def _keys_and_values(self, module: str) -> Iterator[TensorRule]:
        by_head = (self.n_heads, self.n_plain + self.n_value, self.kv_rank)
        layer = module.split(".")[2]

        def keys(rows: _Array) -> _Array:
            return rows.reshape(by_head)[:, : self.n_plain].swapaxes(1, 2)

        def values(rows: _Array) -> _Array:
            return rows.reshape(by_head)[:, self.n_plain :]

        for name, part, shape in (
            ("k", keys, (self.n_heads, self.kv_rank, self.n_plain)),
            ("v", values, (self.n_heads, self.n_value, self.kv_rank)),
        ):
            yield weight(
                f"{module}.kv_b_proj",
                by_head[0] * by_head[1],
                self.kv_rank,
                target=f"blk.{layer}.attn_{name}_b.weight",
                arranged=part,
                written=shape,
            )

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if layer < self.n_dense:
            yield from super().mlp(module, layer)
            return
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        yield from experts(module, self.n_experts, self.n_embd, self.n_expert_ff)
        yield from gated(
            f"{module}.shared_experts", self.n_embd, self.n_shared * self.n_expert_ff
        )


FAMILY = DeepseekV2
