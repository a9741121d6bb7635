"""Llama 4 Scout and Maverick: three layers of four rotate and attend within chunks of 8192 tokens,
the fourth attends to everything, does not rotate, and has longer queries the later they stand;
routed experts and one that is always asked. Of a model that sees too, the text part.

llama.cpp turns the cached keys of the layers that do not rotate too when a context is shifted, and
after a norm: do not roll the context of these models.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ggext.converters.base import TensorRule, columns_of_each, text_part_name, weight
from ggext.converters.llama import QKV, SIGMOID, Llama, gated

from ggext.errors import CheckpointError

_INTERVAL = 4
#: Experts of Maverick, by which llama.cpp knows that queries and keys have no norm.
_WITHOUT_NORMS = 128


class Llama4(Llama):
    arch = "llama4"
    defaults = {
        "rms_norm_eps": 1e-5,
        "head_dim": 128,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layer_interval": _INTERVAL,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    }
    biased = QKV
    rotates_adjacent = True

    def check(self) -> None:
        super().check()
        number = self.config.integer
        source = self.config.source
        self.n_experts = number("num_local_experts")
        self.step = number("interleave_moe_layer_step")
        self.n_dense_ff = number("intermediate_size_mlp")
        why = f"llama.cpp's architecture {self.arch}"
        for name, value in (
            ("attention_chunk_size", 8192),
            ("floor_scale", 8192),
            ("attn_scale", 0.1),
        ):
            if self.config.number(name, default=None) != value:
                raise CheckpointError(
                    f"{source}: {name} is {self.config.values.get(name)!r}; {why} has {value}"
                )
        self.require("attn_temperature_tuning", True, f"{why} has queries that grow")
        normed = self.n_experts != _WITHOUT_NORMS
        self.require(
            "use_qk_norm",
            normed,
            f"{why} has it to be {normed} of {self.n_experts} experts",
        )
        self._check_layers(why)

    def _check_layers(self, why: str) -> None:
        if (
            self.n_layers < _INTERVAL
        ):  # llama.cpp aborts without a layer that does not rotate
            raise self.refused(
                f"num_hidden_layers is {self.n_layers}; {why} has 4 or more"
            )
        rotating = [int((i + 1) % _INTERVAL != 0) for i in range(self.n_layers)]
        if self.config.values.get("no_rope_layers") in (None, []):
            self.require(
                "no_rope_layer_interval",
                _INTERVAL,
                f"{why} rotates in all layers but every {_INTERVAL}th",
            )
        else:
            self.require(
                "no_rope_layers",
                rotating,
                f"{why} rotates in all layers but every {_INTERVAL}th",
            )
        kinds = [
            "chunked_attention" if rotates else "full_attention" for rotates in rotating
        ]
        self.require(
            "layer_types",
            kinds,
            f"{why} attends to everything in the layers that do not rotate",
        )
        with_experts = list(range(self.step - 1, self.n_layers, self.step))
        self.require(
            "moe_layers",
            with_experts,
            f"{why} has experts in each layer of the step {self.step}",
        )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "feed_forward_length": self.n_dense_ff,
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_ff,
            "interleave_moe_layer_step": self.step,
            "expert_gating_func": SIGMOID,
        }

    def stored_name(self, name: str) -> str:
        return text_part_name(name)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        block = module.replace(".mlp", ".feed_forward")
        if (layer + 1) % self.step:
            yield from gated(block, self.n_embd, self.n_dense_ff)
            return
        yield weight(f"{block}.router", self.n_experts, self.n_embd)
        yield from gated(f"{block}.shared_expert", self.n_embd, self.n_ff)
        count = self.n_experts
        n_ff = self.n_ff
        target = f"blk.{layer}.ffn"
        for name, part in (("gate", slice(0, n_ff)), ("up", slice(n_ff, None))):
            yield TensorRule(
                (f"{block}.experts.gate_up_proj",),
                (count, self.n_embd, 2 * n_ff),
                f"{target}_{name}_exps.weight",
                arranged=partial(columns_of_each, part),
                written=(count, n_ff, self.n_embd),
            )
        yield TensorRule(
            (f"{block}.experts.down_proj",),
            (count, n_ff, self.n_embd),
            f"{target}_down_exps.weight",
            transposed=True,
        )


FAMILY = Llama4
