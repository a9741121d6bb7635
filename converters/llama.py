"""Llama 1 to 3.x and what shares its blocks: TinyLlama, SmolLM, Vicuna."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import Family, TensorRule, half_split_to_adjacent, linear, weight

from ggext.errors import CheckpointError
from ggext.rope.capabilities import capability_of
from ggext.rope.config import CheckpointRope


class Llama(Family):
    """Other families are told from it by what they override: ``norms``, ``attention``, ``mlp``.

    ``activation``: the one that llama.cpp's architecture computes. ``rotates_part``: it reads how many of a head's
    dimensions are rotated.
    """

    arch = "llama"
    activation = "silu"
    rotates_part = False

    def check(self) -> None:
        why = f"llama.cpp's architecture {self.arch} uses {self.activation}; this model is another family"
        self.require("hidden_act", self.activation, why)

    def rope(self) -> CheckpointRope:
        rope = super().rope()
        if rope.geometry.n_rot != self.head_dim and not self.rotates_part:
            raise CheckpointError(
                f"{self.config.source}: {rope.geometry.n_rot} of {self.head_dim} dimensions are rotated "
                f"(partial_rotary_factor); llama.cpp's architecture {self.arch} rotates all"
            )
        return rope

    def metadata(self) -> dict[str, Any]:
        epsilon = self.config.number("rms_norm_eps", default=1e-6)
        return super().metadata() | {"attention.layer_norm_rms_epsilon": epsilon}

    def tensors(self) -> Iterator[TensorRule]:
        yield weight("model.embed_tokens", self.vocab_size, self.n_embd)
        yield weight("model.norm", self.n_embd)
        if not self.config.flag("tie_word_embeddings"):
            yield weight("lm_head", self.vocab_size, self.n_embd)
        for i in range(self.n_layers):
            block = f"model.layers.{i}"
            yield from self.norms(block)
            yield from self.attention(f"{block}.self_attn")
            yield from self.mlp(f"{block}.mlp", i)

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield weight(f"{block}.input_layernorm", self.n_embd)
        yield weight(f"{block}.post_attention_layernorm", self.n_embd)

    def attention(self, module: str) -> Iterator[TensorRule]:
        q_rows, kv_rows = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        q_order = k_order = None
        if capability_of(self.arch).layout == "norm":
            q_order = half_split_to_adjacent(self.n_heads, self.head_dim)
            k_order = half_split_to_adjacent(self.n_kv_heads, self.head_dim)
        yield from linear(f"{module}.q_proj", q_rows, self.n_embd, q_order)
        yield from linear(f"{module}.k_proj", kv_rows, self.n_embd, k_order)
        yield from linear(f"{module}.v_proj", kv_rows, self.n_embd)
        yield from linear(f"{module}.o_proj", self.n_embd, q_rows)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer  # what is different from layer to layer elsewhere is not here
        yield from linear(f"{module}.gate_proj", self.n_ff, self.n_embd)
        yield from linear(f"{module}.up_proj", self.n_ff, self.n_embd)
        yield from linear(f"{module}.down_proj", self.n_embd, self.n_ff)


FAMILY = Llama
