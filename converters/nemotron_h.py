"""Nemotron-H and Nemotron 3: each layer is one thing, most of them Mamba 2, whose state does not
grow with the text, then feed-forward parts or routed experts, and a few that attend. Nothing
rotates. Experts may work on a shorter vector; the layers that predict a second token are left
out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ggext.converters.base import TensorRule, names_each, stacked, weight
from ggext.converters.granitemoehybrid import Mamba2
from ggext.converters.llama import QKV, Llama

from ggext.checkpoint.config import Config
from ggext.errors import CheckpointError

_MAMBA, _ATTENTION, _DENSE, _EXPERTS = (
    "linear_attention",
    "full_attention",
    "mlp",
    "moe",
)
#: What config.json calls a layer → what it is.
_KINDS = {
    **dict.fromkeys(("M", "mamba", _MAMBA), _MAMBA),
    **dict.fromkeys(("*", "attention", _ATTENTION), _ATTENTION),
    **dict.fromkeys(("-", _DENSE), _DENSE),
    **dict.fromkeys(("E", _EXPERTS), _EXPERTS),
}
_PATTERN = "hybrid_override_pattern"
_LISTED = ("layers_block_type", "layer_types")
#: Older names, which transformers' class prefers to its own.
_OLDER = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "use_conv_bias": "mamba_conv_bias",
    "time_step_limit": "mamba_dt_limit",
}


class NemotronH(Llama):
    arch = "nemotron_h"
    further_archs = ("nemotron_h_moe",)
    attribute_map = {
        "hidden_act": "mlp_hidden_act",
        "rms_norm_eps": "layer_norm_epsilon",
    }
    defaults = {
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "mamba_hidden_act": "silu",
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "use_bias": False,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
    }
    activations = ("relu2",)
    biased = (*QKV, "o_proj", "up_proj", "down_proj")
    rotates_part = True
    rotates_adjacent = True  # nothing does, so that no order of rows is another
    embedding = "backbone.embeddings"
    final_norm = "backbone.norm_f"

    def __init__(self, config: Config) -> None:
        values = dict(config.values)
        values |= {ours: values[own] for ours, own in _OLDER.items() if own in values}
        self.kinds = _kinds(config)
        values["num_hidden_layers"] = len(self.kinds)
        super().__init__(replace(config, values=values))

    def check(self) -> None:
        super().check()
        number = self.config.integer
        why = f"llama.cpp's architecture {self.arch}"
        self.require("mamba_hidden_act", "silu", f"{why} has silu there")
        self.require("sliding_window", (), f"{why} attends to everything")
        kinds = set(self.kinds)
        if not {_MAMBA, _ATTENTION} <= kinds:
            raise self.refused(  # llama.cpp aborts on a model without one of the two caches
                f"no layer is {_MAMBA} or none {_ATTENTION}; llama.cpp needs both"
            )
        if {_DENSE, _EXPERTS} <= kinds:
            raise self.refused(
                f"some layers are {_DENSE} and others {_EXPERTS}; llama.cpp "
                "has one kind in a model"
            )
        if _EXPERTS in kinds:
            self.arch = "nemotron_h_moe"
            self.n_experts = number("n_routed_experts")
            self.n_ff = number("moe_intermediate_size")
            self.latent = number("moe_latent_size", default=None)
            self.n_shared_ff = number("moe_shared_expert_intermediate_size")
        inner = number("mamba_num_heads") * number("mamba_head_dim")
        names = "mamba_num_heads n_groups ssm_state_size conv_kernel"
        self.mamba = Mamba2(self.config, inner, names)

    def metadata(self) -> dict[str, Any]:
        epsilon = self.config.number("rms_norm_eps")
        widths = [self.n_ff * (kind in (_DENSE, _EXPERTS)) for kind in self.kinds]
        heads = [self.n_kv_heads * (kind == _ATTENTION) for kind in self.kinds]
        metadata = super().metadata() | self.mamba.metadata()
        return (
            metadata
            | (self._routing() if _EXPERTS in self.kinds else {})
            | {
                "attention.layer_norm_epsilon": epsilon,
                "attention.head_count_kv": heads,
                "context_length": self.config.integer("max_position_embeddings"),
                "feed_forward_length": widths,
            }
        )

    def _routing(self) -> dict[str, Any]:
        number = self.config.integer
        groups = number("n_group")
        chosen = number("topk_group")
        routing = {
            "expert_count": self.n_experts,
            "expert_used_count": number("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_ff,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": self.n_shared_ff,
            "expert_weights_scale": self.config.number("routed_scaling_factor"),
            "expert_weights_norm": self.config.flag("norm_topk_prob"),
        }
        if chosen < groups:
            routing |= {"expert_group_count": groups, "expert_group_used_count": chosen}
        return routing | ({"moe_latent_size": self.latent} if self.latent else {})

    def stored_name(self, name: str) -> str:
        return (
            name.replace("model.", "backbone.", 1)
            if name.startswith("model.")
            else name
        )

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm(self.final_norm)
        yield from self.output()
        conv_bias = self.config.flag("use_conv_bias")
        for i, kind in enumerate(self.kinds):
            block = f"backbone.layers.{i}"
            yield from self.norm(f"{block}.norm")
            mixer = f"{block}.mixer"
            if kind == _MAMBA:
                yield from self.mamba.tensors(mixer, f"blk.{i}", conv_bias=conv_bias)
            elif kind == _ATTENTION:
                yield from self.attention(mixer)
            elif kind == _DENSE:
                yield from self.mlp(mixer, i)
            else:
                yield from self.experts(mixer, f"blk.{i}")

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer  # they are alike here
        yield from self.project(module, "up_proj", self.n_ff, self.n_embd)
        yield from self.project(module, "down_proj", self.n_embd, self.n_ff)

    def experts(self, module: str, block: str) -> Iterator[TensorRule]:
        """``block``: of the GGUF names."""
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        yield TensorRule(
            (f"{module}.gate.e_score_correction_bias",),
            (self.n_experts,),
            f"{block}.exp_probs_b.bias",
        )
        width = self.latent or self.n_embd
        if self.latent:
            yield weight(f"{module}.fc1_latent_proj", width, self.n_embd)
            yield weight(f"{module}.fc2_latent_proj", self.n_embd, width)
        for name, rows, columns in (
            ("up", self.n_ff, width),
            ("down", width, self.n_ff),
        ):
            whole = (
                f"{module}.experts.{name}_proj"  # as transformers 5 has it in memory
            )
            yield stacked(
                f"{module}.experts.{{}}.{name}_proj",
                self.n_experts,
                rows,
                columns,
                target=f"{block}.ffn_{name}_exps.weight",
                instead=TensorRule((whole,), (self.n_experts, rows, columns)),
            )
        shared = f"{module}.shared_experts"
        yield weight(f"{shared}.up_proj", self.n_shared_ff, self.n_embd)
        yield weight(f"{shared}.down_proj", self.n_embd, self.n_shared_ff)


def _kinds(config: Config) -> list[str]:
    """What each layer is."""
    named = next((config.values[k] for k in _LISTED if config.values.get(k)), None)
    if named is None and isinstance(config.values.get(_PATTERN), str):
        named = list(config.values[_PATTERN])
    if named is None:
        named = [_MAMBA, _EXPERTS, _ATTENTION, _DENSE]
    count = len(named) if isinstance(named, list) else 0
    if not count or not names_each(named, count, tuple(_KINDS)):
        raise CheckpointError(
            f"{config.source}: {_LISTED[0]} is {named!r:.60}; it must name {_MAMBA}, {_ATTENTION}, "
            f"{_DENSE} or {_EXPERTS} for each layer"
        )
    return [_KINDS[kind] for kind in named]


FAMILY = NemotronH
