"""Step 3.7 Flash: windows in some layers, with a base, a share of what rotates and a number of
heads of their own, a gate on each head, and routed experts next to a shared one, whose values are
bounded in some layers. Of a model that sees too, the text part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ggext.converters.base import (
    TensorRule,
    correction,
    names_each,
    rows_of_each,
    text_part_name,
    weight,
)
from ggext.converters.llama import SIGMOID, Llama, gated

from ggext.checkpoint.config import Config
from ggext.errors import CheckpointError
from ggext.rope.families import FULL

#: Lists with a value a layer, to which older files add those of the layers that predict further
#: tokens.
_PADDED = (
    "layer_types",
    "mlp_layer_types",
    "swiglu_limits",
    "swiglu_limits_shared",
    "rope_theta",
    "partial_rotary_factors",
)
_FIRST_SPARSE = 3
_OLD_NAMES = (
    (".mlp.gate.e_score_correction_bias", ".moe.router_bias"),
    (".mlp.gate.weight", ".moe.gate.weight"),
    (".mlp.experts.", ".moe.experts."),
    (".mlp.shared_experts.", ".share_expert."),
)


class Step3p7(Llama):
    """``slides``: which layers attend to a window; ``sparse``: which have experts; ``heads``: of
    queries, layer by layer."""

    arch = "step35"
    defaults = {
        "rms_norm_eps": 1e-5,
        "vocab_size": 128815,
        "hidden_size": 4096,
        "intermediate_size": 11264,
        "num_hidden_layers": 45,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "n_routed_experts": 288,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1280,
        "share_expert_dim": 1280,
        "moe_router_scaling_factor": 1.0,
    }
    attribute_map = {
        "num_key_value_heads": "num_attention_groups",
        "n_routed_experts": "moe_num_experts",
        "num_experts_per_tok": "moe_top_k",
        "share_expert_dim": "share_expert_dims",
    }
    biased = ()
    rotates_part = True
    needs_output = True
    tied_as_part = False

    def check(self) -> None:
        self.config = _as_saved_now(self.config, self.n_layers)
        super().check()
        number = self.config.integer
        why = f"llama.cpp's architecture {self.arch}"
        self.n_experts = number("n_routed_experts")
        self.n_expert_ff = number("moe_intermediate_size")
        self.n_shared_ff = number("share_expert_dim")
        self.slides = self.sliding_layers([])
        self.sparse = self._sparse_layers()
        if not any(self.slides):
            raise self.refused(
                f"layer_types names no layer with a window, and {why} has "
                "some in all models"
            )
        self.heads = [self._heads(i) for i in range(self.n_layers)]
        scalar = self.config.number("query_pre_attn_scalar", default=self.head_dim)
        if scalar != self.head_dim:
            raise self.refused(
                f"query_pre_attn_scalar is {scalar:g}; {why} has head_dim, "
                f"{self.head_dim}"
            )

    def _sparse_layers(self) -> list[bool]:
        kinds = self.config.values["mlp_layer_types"]
        if not names_each(kinds, self.n_layers, ("dense", "sparse")):
            raise self.refused(
                f"mlp_layer_types must name dense or sparse for each of "
                f"{self.n_layers} layers"
            )
        return [kind == "sparse" for kind in kinds]

    def _heads(self, layer: int) -> int:
        given = self.config.section("per_layer_config").get(str(layer), {})
        if not isinstance(given, Mapping) or set(given) - {"num_attention_heads"}:
            raise self.refused(
                f"per_layer_config of layer {layer} says more than "
                f"num_attention_heads: {given!r:.60}"
            )
        usual = self.n_heads
        if self.slides[layer]:
            key = "num_sliding_attention_heads"
            usual = self.config.integer(key, default=self.n_heads)
        heads = given.get("num_attention_heads", usual)
        if type(heads) is not int or heads < 1 or heads % self.n_kv_heads:
            raise self.refused(
                f"layer {layer} has {heads!r:.20} heads, which is not a "
                f"multiple of num_key_value_heads {self.n_kv_heads}"
            )
        return heads

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "attention.head_count": self.heads,
            "attention.sliding_window": self.config.integer("sliding_window"),
            "attention.sliding_window_pattern": self.slides,
            "leading_dense_block_count": (*self.sparse, True).index(True),
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_expert_ff,
            "expert_shared_feed_forward_length": self.n_shared_ff,
            "expert_weights_scale": self.config.number("moe_router_scaling_factor"),
            "expert_weights_norm": True,
            "expert_gating_func": SIGMOID,
            "swiglu_clamp_exp": self._limits("swiglu_limits"),
            "swiglu_clamp_shexp": self._limits("swiglu_limits_shared"),
        }

    def _limits(self, key: str) -> list[float]:
        """One a layer, 0 where there is none."""
        given: Any = self.config.values.get(key) or [None] * self.n_layers
        whole = isinstance(given, list) and len(given) == self.n_layers
        if not whole or not all(
            value is None or (type(value) in (int, float) and value >= 0)
            for value in given
        ):
            raise self.refused(
                f"{key} must have a number or null for each of {self.n_layers} layers"
            )
        return [float(value or 0.0) for value in given]

    def stored_name(self, name: str) -> str:
        name = text_part_name(name)
        for new, old in _OLD_NAMES:
            name = name.replace(new, old)
        return name

    def norm(self, module: str) -> Iterator[TensorRule]:
        yield weight(module, self.n_embd, plus=1.0)

    def attention_of(self, module: str, layer: int) -> Iterator[TensorRule]:
        heads = self.heads[layer]
        rows = heads * self.head_dim
        kv_rows = self.n_kv_heads * self.head_dim
        yield weight(f"{module}.q_proj", rows, self.n_embd)
        yield weight(f"{module}.k_proj", kv_rows, self.n_embd)
        yield weight(f"{module}.v_proj", kv_rows, self.n_embd)
        yield weight(f"{module}.o_proj", self.n_embd, rows)
        yield weight(f"{module}.q_norm", self.head_dim, plus=1.0)
        yield weight(f"{module}.k_norm", self.head_dim, plus=1.0)
        yield weight(f"{module}.g_proj", heads, self.n_embd)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if self.sparse[layer]:
            yield from self._experts_of(module.removesuffix(".mlp"), layer)
        else:
            yield from super().mlp(module, layer)

    def _experts_of(self, block: str, layer: int) -> Iterator[TensorRule]:
        """Stored one tensor a projection, or with the gate and the other in one."""
        count = self.n_experts
        n_ff = self.n_expert_ff
        at = f"blk.{layer}"
        yield weight(f"{block}.moe.gate", count, self.n_embd)
        yield correction(f"{block}.moe.router_bias", count, layer)
        fused = (f"{block}.moe.experts.gate_up_proj",)
        for name, part in (("gate", slice(0, n_ff)), ("up", slice(n_ff, None))):
            half = TensorRule(
                fused,
                (count, 2 * n_ff, self.n_embd),
                arranged=partial(rows_of_each, part),
                written=(count, n_ff, self.n_embd),
            )
            target = f"{at}.ffn_{name}_exps.weight"
            module = f"{block}.moe.{name}_proj"
            shape = (count, n_ff, self.n_embd)
            yield weight(module, *shape, target=target, instead=half)
        shape = (count, self.n_embd, n_ff)
        whole = TensorRule((f"{block}.moe.experts.down_proj",), shape)
        target = f"{at}.ffn_down_exps.weight"
        yield weight(f"{block}.moe.down_proj", *shape, target=target, instead=whole)
        yield from gated(f"{block}.share_expert", self.n_embd, self.n_shared_ff)


def _as_saved_now(config: Config, n_layers: int) -> Config:
    """What older files say in other keys, as transformers takes it: layer by layer, with the rope
    parameters by kind of layer. The activation is what the class has, whatever the file says."""
    values = {key: value for key, value in config.values.items() if key != "hidden_act"}
    padded = n_layers + config.integer("num_nextn_predict_layers", default=0, minimum=0)
    for key in _PADDED:
        if isinstance(values.get(key), list) and len(values[key]) == padded:
            values[key] = values[key][:n_layers]
    if values.get("layer_types") is None:
        values["layer_types"] = [FULL] * n_layers
    if values.get("mlp_layer_types") is None:
        values["mlp_layer_types"] = _kinds_of_mlp(config, n_layers)
    others = config.section("attention_other_setting")
    if others and values.get("num_sliding_attention_heads") is None:
        values["num_sliding_attention_heads"] = others.get("num_attention_heads")
    names = ("num_attention_groups", "head_dim")
    other = next((name for name in names if name in others), None)
    if other is not None and others[other] != values.get(other, others[other]):
        raise CheckpointError(
            f"{config.source}: attention_other_setting has {other} {others[other]!r:.20}, which "
            "transformers does not read; all layers have the same"
        )
    values["rope_parameters"] = _rope_of_kinds(replace(config, values=values))
    for key in ("rope_theta", "partial_rotary_factors", "rope_scaling"):
        values.pop(key, None)
    return replace(config, values=values)


def _kinds_of_mlp(config: Config, n_layers: int) -> list[str]:
    given = config.values.get("moe_layers_enum")
    sparse = {str(i) for i in range(_FIRST_SPARSE, n_layers)}
    if given is not None:
        items = given.split(",") if isinstance(given, str) else given
        if not isinstance(items, list):
            raise CheckpointError(
                f"{config.source}: moe_layers_enum is {given!r:.40}; it must list layers"
            )
        sparse = {str(item).strip() for item in items}
    return ["sparse" if str(i) in sparse else "dense" for i in range(n_layers)]


def _rope_of_kinds(config: Config) -> dict[str, Any]:
    given = config.section("rope_parameters")
    kinds = config.values["layer_types"]
    names = [str(kind) for kind in kinds] if isinstance(kinds, list) else []
    named = sorted(set(names))
    if all(isinstance(given.get(kind), dict) for kind in named):
        return {kind: given[kind] for kind in named}
    bases = config.values.get("rope_theta", 10000.0)
    shares = config.values.get("partial_rotary_factors")
    parameters: dict[str, dict[str, Any]] = {}
    for kind in named:
        layer = names.index(kind)
        base = bases
        if isinstance(bases, list):
            base = _at_layer(config, "rope_theta", bases, layer)
        parameters[kind] = {"rope_type": "default", "rope_theta": base}
        if shares:
            share = _at_layer(config, "partial_rotary_factors", shares, layer)
            parameters[kind]["partial_rotary_factor"] = share
    if FULL in parameters:
        parameters[FULL] |= config.section("rope_scaling")
    return parameters


def _at_layer(config: Config, key: str, values: Any, layer: int) -> Any:
    if not isinstance(values, list) or layer >= len(values):
        raise CheckpointError(
            f"{config.source}: {key} is {values!r:.40}; it must list a value for each layer"
        )
    return values[layer]


FAMILY = Step3p7
