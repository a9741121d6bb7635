"""MiniMax M3: routed experts next to a shared one, and attention to blocks of the text that a small
indexer chooses, after a few layers without either; a part of each head is rotated. Of a model that
sees too, the text part.

llama.cpp chooses blocks with flash attention alone: without it every layer attends to everything,
a KL of 2 to 8 nats in a tiny model. ggext's contexts always have it. In the first layers it rounds
keys and values to float16, whatever the cache holds, which costs the tiny models of the tests a KL
of some 1e-5; without these layers it is 3e-11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ggext.converters.base import (
    TensorRule,
    correction,
    experts,
    names_each,
    text_part_name,
    weight,
)
from ggext.converters.granitemoe import gate_and_up
from ggext.converters.llama import SIGMOID, Llama

from ggext.rope.config_reader import CheckpointRope
from ggext.rope.families import FULL

_BLOCKS = "minimax_m3_sparse"
#: Within ``sparse_attention_config`` of the published files → the key that transformers has.
_PUBLISHED = {
    "sparse_num_index_heads": "index_n_heads",
    "sparse_index_dim": "index_head_dim",
    "sparse_block_size": "index_block_size",
    "sparse_topk_blocks": "index_topk_blocks",
    "sparse_local_block": "index_local_blocks",
}
#: What is said of such a model in keys that transformers does not read.
_GIVEN = {
    "scoring_func": "sigmoid",
    "use_gemma_norm": True,
    "use_qk_norm": True,
    "qk_norm_type": "per_head",
    "hidden_act": ("silu", "swigluoai"),
}
_GIVEN_OF_BLOCKS = {
    "use_sparse_attention": True,
    "sparse_init_block": 0,
    "sparse_score_type": "max",
}


class MiniMaxM3(Llama):
    arch = "minimax-m3"
    defaults = {
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 3072,
        "dense_intermediate_size": 12288,
        "shared_intermediate_size": 3072,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 2.0,
        "index_n_heads": 4,
        "index_head_dim": 128,
        "index_block_size": 128,
        "index_topk_blocks": 16,
        "index_local_blocks": 1,
    }
    biased = ()
    rotates_part = True
    needs_output = True
    tied_as_part = False
    tied_by_text = True

    def check(self) -> None:
        why = f"llama.cpp's architecture {self.arch}"
        for key, value in _GIVEN.items():
            self.require(key, value, f"transformers' {self.arch} takes {value!r}")
        self.require("swiglu_alpha", 1.702, f"{why} takes 1.702")
        self.require("swiglu_limit", 7.0, f"{why} takes 7")
        self._read_published()
        number = self.config.integer
        self.n_experts = number("num_local_experts")
        self.n_dense_ff = number("dense_intermediate_size")
        self.n_shared_ff = number("shared_intermediate_size")
        if self.n_shared_ff % self.n_ff:
            raise self.refused(
                f"shared_intermediate_size is {self.n_shared_ff}; {why} has a multiple of "
                f"intermediate_size, {self.n_ff}"
            )
        self.n_dense = self._dense_layers(why)
        self._check_blocks(why)

    def _read_published(self) -> None:
        """The published keys under the names that transformers saves."""
        values = self.config.values
        given = self.config.section("sparse_attention_config")
        for key, value in _GIVEN_OF_BLOCKS.items():
            if given.get(key, value) != value:
                raise self.refused(
                    f"{key} is {given[key]!r}; transformers' {self.arch} takes {value!r}"
                )
        published = {own: given[key] for key, own in _PUBLISHED.items() if key in given}
        for key, flags, kinds in (
            (
                "layer_types",
                given.get("sparse_attention_freq"),
                (FULL, _BLOCKS),
            ),
            ("mlp_layer_types", values.get("moe_layer_freq"), ("dense", "sparse")),
        ):
            if values.get(key) is None and isinstance(flags, list):
                published[key] = [kinds[bool(flag)] for flag in flags]
        self.config = self.config.with_values(**published)

    def _dense_layers(self, why: str) -> int:
        """How many layers, the first ones, have neither experts nor an indexer."""
        attention = self.config.values.get("layer_types")
        wide = self.config.values.get("mlp_layer_types")
        for key, kinds, known in (
            ("layer_types", attention, (FULL, _BLOCKS)),
            ("mlp_layer_types", wide, ("dense", "sparse")),
        ):
            if not names_each(kinds, self.n_layers, known):
                raise self.refused(
                    f"{key} must name {known[0]} or {known[1]} for each of {self.n_layers} layers"
                )
        chooses = [kind == _BLOCKS for kind in attention or ()]
        if chooses != [kind == "sparse" for kind in wide or ()]:
            raise self.refused(
                f"layer_types and mlp_layer_types differ; {why} has experts where blocks are chosen"
            )
        if chooses != sorted(chooses):
            raise self.refused(f"{why} has the layers without experts first")
        return chooses.count(False)

    def _check_blocks(self, why: str) -> None:
        number = self.config.integer
        self.n_index = number("index_n_heads")
        self.index_dim = number("index_head_dim")
        self.block = number("index_block_size")
        self.n_blocks = number("index_topk_blocks")
        self.n_local = number("index_local_blocks", minimum=0)
        if self.n_index != self.n_kv_heads:
            raise self.refused(
                f"index_n_heads is {self.n_index}; {why} has as many as num_key_value_heads, "
                f"{self.n_kv_heads}"
            )
        if self.block & (self.block - 1):
            raise self.refused(
                f"index_block_size is {self.block}; {why} has a power of two"
            )
        if self.n_local > self.n_blocks:
            raise self.refused(
                f"index_local_blocks is {self.n_local} of {self.n_blocks} blocks that are chosen, "
                "which ones is then left to chance"
            )

    def rope(self) -> CheckpointRope:
        rope = super().rope()
        n_rot = rope.geometry.n_rot
        rotary_dim = self.config.integer("rotary_dim", default=n_rot)
        if rotary_dim != n_rot and rotary_dim <= self.head_dim:
            raise self.refused(
                f"rotary_dim is {rotary_dim}, which transformers does not read: by "
                f"partial_rotary_factor it rotates {n_rot} of {self.head_dim} dimensions; "
                "make them agree"
            )
        if n_rot > self.index_dim:
            raise self.refused(
                f"index_head_dim is {self.index_dim}, and {n_rot} dimensions are rotated"
            )
        return rope

    def stored_name(self, name: str) -> str:
        ours = text_part_name(name).replace(".self_attn.index_", ".self_attn.indexer.")
        ours = ours.replace(
            ".block_sparse_moe.e_score_correction_bias",
            ".mlp.gate.e_score_correction_bias",
        )
        return ours.replace(".block_sparse_moe.", ".mlp.")

    def metadata(self) -> dict[str, Any]:
        number = self.config.number
        return super().metadata() | {
            "feed_forward_length": self.n_dense_ff,
            "leading_dense_block_count": self.n_dense,
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.n_ff,
            "expert_shared_count": self.n_shared_ff // self.n_ff,
            "expert_weights_scale": number("routed_scaling_factor"),
            "expert_weights_norm": True,
            "expert_gating_func": SIGMOID,
            "attention.indexer.head_count": self.n_index,
            "attention.indexer.key_length": self.index_dim,
            "attention.indexer.top_k": self.n_blocks,
            "attention.indexer.block_size": self.block,
            "attention.indexer.local_blocks": self.n_local,
        }

    def norm(self, module: str) -> Iterator[TensorRule]:
        yield weight(module, self.n_embd, plus=1.0)

    def attention_of(self, module: str, layer: int) -> Iterator[TensorRule]:
        yield from self.attention(module)
        yield weight(f"{module}.q_norm", self.head_dim, plus=1.0)
        yield weight(f"{module}.k_norm", self.head_dim, plus=1.0)
        if layer < self.n_dense:
            return
        rows = {"q": self.n_index * self.index_dim, "k": self.index_dim}
        for name, count in rows.items():
            source = f"{module}.indexer.{name}"
            target = f"blk.{layer}.indexer.{name}_{{}}.weight"
            yield weight(
                f"{source}_proj", count, self.n_embd, target=target.format("proj")
            )
            yield weight(
                f"{source}_norm",
                self.index_dim,
                target=target.format("norm"),
                plus=1.0,
            )

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        target = f"blk.{layer}.ffn_{{}}.weight"
        if layer < self.n_dense:
            yield from self._gated(module, self.n_dense_ff, target)
            return
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        source = f"{module}.gate.e_score_correction_bias"
        yield correction(source, self.n_experts, layer)
        yield from experts(
            module,
            self.n_experts,
            self.n_embd,
            self.n_ff,
            names="w1 w3 w2",
            target=target.replace(".weight", "_exps.weight"),
        )
        yield from self._gated(
            f"{module}.shared_experts",
            self.n_shared_ff,
            target.replace(".weight", "_shexp.weight"),
        )

    def _gated(self, module: str, rows: int, target: str) -> Iterator[TensorRule]:
        """As published, or with the first two projections in one, as transformers saves a model of
        text alone."""
        both = gate_and_up(f"{module}.gate_up_proj", target, 2 * rows, self.n_embd)
        for name, fused in zip(("gate", "up"), both, strict=True):
            apart = weight(f"{module}.{name}_proj", rows, self.n_embd)
            yield replace(apart, target=target.format(name), instead=fused)
        yield weight(
            f"{module}.down_proj", self.n_embd, rows, target=target.format("down")
        )


FAMILY = MiniMaxM3
