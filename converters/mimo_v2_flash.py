"""MiMo V2 Flash: windows with twice the keys' heads, sinks and a base of their own, values of
another size than keys, of which a third turns, and routed experts.

A window is one token longer than `sliding_window_size`, as transformers has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, correction, experts, names_each, weight
from ggext.converters.llama import Llama

_PERIOD = 6


class MimoV2Flash(Llama):
    """``slides``: which layers attend to a window; ``sparse``: which have experts."""

    arch = "mimo2"
    defaults = {
        "rms_norm_eps": 1e-5,
        "vocab_size": 152576,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 192,
        "v_head_dim": 128,
        "sliding_window": 129,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "topk_group": 1,
        "attention_value_scale": 0.707,
        "norm_topk_prob": True,
    }
    attribute_map = {"n_routed_experts": "num_local_experts"}
    biased = ()
    rotates_part = True
    needs_output = True

    def check(self) -> None:
        super().check()
        number = self.config.integer
        why = f"llama.cpp's architecture {self.arch}"
        self.n_experts = number("n_routed_experts")
        self.n_expert_ff = number("moe_intermediate_size")
        self.value_dim = number("v_head_dim")
        layers = range(self.n_layers)
        self.slides = self.sliding_layers(
            [i > 0 and (i + 1) % _PERIOD != 0 for i in layers]
        )
        self.sparse = self._sparse_layers()
        if not any(self.slides):
            raise self.refused(
                f"layer_types names no layer with a window, and {why} has "
                "some in all models"
            )
        self.require("norm_topk_prob", True, f"{why} divides weights by their sum")
        self.require("routed_scaling_factor", 1, f"{why} scales no experts")
        if self.n_heads % (2 * self.n_kv_heads) and any(self.slides):
            raise self.refused(
                f"num_attention_heads {self.n_heads} is not a multiple of "
                f"the {2 * self.n_kv_heads} heads of keys of a layer with a window"
            )
        self._check_what_others_read()

    def _sparse_layers(self) -> list[bool]:
        kinds = self.config.values.get("mlp_layer_types")
        if kinds is None:
            return [i > 0 for i in range(self.n_layers)]
        if not names_each(kinds, self.n_layers, ("dense", "sparse")):
            raise self.refused(
                f"mlp_layer_types must name dense or sparse for each of "
                f"{self.n_layers} layers"
            )
        return [kind == "sparse" for kind in kinds]

    def _check_what_others_read(self) -> None:
        """Keys of the model's own code, which transformers has others for."""
        why = "transformers' mimo_v2_flash does not read it, and takes"
        for name, taken in (
            ("hybrid_layer_pattern", [int(slide) for slide in self.slides]),
            ("moe_layer_freq", [int(sparse) for sparse in self.sparse]),
            ("layernorm_epsilon", self.config.number("rms_norm_eps")),
            ("swa_num_attention_heads", self.n_heads),
            ("swa_num_key_value_heads", 2 * self.n_kv_heads),
            ("swa_head_dim", self.head_dim),
            ("swa_v_head_dim", self.value_dim),
            ("add_swa_attention_sink_bias", True),
            ("add_full_attention_sink_bias", False),
            ("scoring_func", "sigmoid"),
            ("topk_method", "noaux_tc"),
        ):
            self.require(name, taken, f"{why} {taken!r:.60}")

    def metadata(self) -> dict[str, Any]:
        number = self.config.integer
        size = number("sliding_window_size", default=None)
        scale = self.config.number("attention_value_scale", default=1.0)
        values: dict[str, Any] = {
            "attention.head_count_kv": [
                self._kv_heads(i) for i in range(self.n_layers)
            ],
            "attention.value_length": self.value_dim,
            "attention.value_scale": scale,
            "attention.sliding_window": size + 1 if size else number("sliding_window"),
            "attention.sliding_window_pattern": self.slides,
            "expert_count": self.n_experts,
            "expert_used_count": number("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
        }
        groups = number("n_group")
        chosen = number("topk_group")
        if chosen < groups:
            values |= {"expert_group_count": groups, "expert_group_used_count": chosen}
        return super().metadata() | values

    def _kv_heads(self, layer: int) -> int:
        return int(self.n_kv_heads * (2 if self.slides[layer] else 1))

    def stored_name(self, name: str) -> str:
        return name.replace(".attention_sink_bias", ".sinks")

    def attention_of(self, module: str, layer: int) -> Iterator[TensorRule]:
        kv_heads = self._kv_heads(layer)
        rows = self.n_heads * self.head_dim
        values = self.n_heads * self.value_dim
        yield weight(f"{module}.q_proj", rows, self.n_embd)
        yield weight(f"{module}.k_proj", kv_heads * self.head_dim, self.n_embd)
        yield weight(f"{module}.v_proj", kv_heads * self.value_dim, self.n_embd)
        yield weight(f"{module}.o_proj", self.n_embd, values)
        if self.slides[layer]:
            target = f"blk.{layer}.attn_sinks.weight"
            yield TensorRule((f"{module}.sinks",), (self.n_heads,), target)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if not self.sparse[layer]:
            yield from super().mlp(module, layer)
            return
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        source = f"{module}.gate.e_score_correction_bias"
        yield correction(source, self.n_experts, layer)
        yield from experts(module, self.n_experts, self.n_embd, self.n_expert_ff)


FAMILY = MimoV2Flash
