"""Llama 1 to 3.x and what shares its blocks: TinyLlama, SmolLM, Vicuna."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import Family, TensorRule, half_split_to_adjacent

from ggext.errors import CheckpointError
from ggext.rope.config import CheckpointRope


class Llama(Family):
    arch = "llama"

    def check(self) -> None:
        self.require("hidden_act", "silu", "llama.cpp's architecture llama uses silu; this model is another family")

    def rope(self) -> CheckpointRope:
        rope = super().rope()
        if rope.geometry.n_rot != self.head_dim:
            raise CheckpointError(
                f"{self.config.source}: {rope.geometry.n_rot} of {self.head_dim} dimensions are rotated "
                f"(partial_rotary_factor); llama.cpp's architecture {self.arch} rotates all"
            )
        return rope

    def metadata(self) -> dict[str, Any]:
        epsilon = self.config.number("rms_norm_eps", default=1e-6)
        return super().metadata() | {"attention.layer_norm_rms_epsilon": epsilon}

    def tensors(self) -> Iterator[TensorRule]:
        tied = self.config.flag("tie_word_embeddings")
        yield TensorRule("model.embed_tokens.weight", "token_embd.weight", (self.vocab_size, self.n_embd))
        yield TensorRule("model.norm.weight", "output_norm.weight", (self.n_embd,))
        if not tied:
            yield TensorRule("lm_head.weight", "output.weight", (self.vocab_size, self.n_embd))
        for i in range(self.n_layers):
            yield from self.block(f"model.layers.{i}.", f"blk.{i}.")

    def block(self, source: str, target: str) -> Iterator[TensorRule]:
        q_rows, kv_rows = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        q_order = half_split_to_adjacent(self.n_heads, self.head_dim)
        k_order = half_split_to_adjacent(self.n_kv_heads, self.head_dim)
        for norm, name in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
            yield TensorRule(f"{source}{norm}.weight", f"{target}{name}.weight", (self.n_embd,))
        for module, name, rows, columns, order in (
            ("self_attn.q_proj", "attn_q", q_rows, self.n_embd, q_order),
            ("self_attn.k_proj", "attn_k", kv_rows, self.n_embd, k_order),
            ("self_attn.v_proj", "attn_v", kv_rows, self.n_embd, None),
            ("self_attn.o_proj", "attn_output", self.n_embd, q_rows, None),
            ("mlp.gate_proj", "ffn_gate", self.n_ff, self.n_embd, None),
            ("mlp.up_proj", "ffn_up", self.n_ff, self.n_embd, None),
            ("mlp.down_proj", "ffn_down", self.n_embd, self.n_ff, None),
        ):
            yield TensorRule(f"{source}{module}.weight", f"{target}{name}.weight", (rows, columns), order)
            yield TensorRule(f"{source}{module}.bias", f"{target}{name}.bias", (rows,), order, optional=True)


FAMILY = Llama
