"""MiniCPM 3: latent attention, half of each head rotated, and constants that llama.cpp knows by
heart.

llama.cpp takes rms_norm_eps for the norms of the latents too, where transformers has 1e-6. With the
published 1e-5 the tiny model of the tests has a KL of 9e-12.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import WithLatents

from ggext.checkpoint.config import Config
from ggext.rope.config_reader import CheckpointRope


class MiniCPM3(WithLatents):
    arch = "minicpm3"
    defaults = {
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "q_lora_rank": 768,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.n_rot = self.config.integer("qk_rope_head_dim")
        self.head_dim = self.config.integer("qk_nope_head_dim") + self.n_rot
        self.value_dim = self.config.integer(
            "v_head_dim", default=self.n_embd // self.n_heads
        )
        self.q_rank = self.config.integer("q_lora_rank")
        self.kv_rank = self.config.integer("kv_lora_rank")

    def check(self) -> None:
        super().check()
        for name, value in (
            ("scale_emb", 12),
            ("scale_depth", 1.4),
            ("dim_model_base", 256),
        ):
            self.require(
                name,
                value,
                f"llama.cpp's architecture {self.arch} computes with {value}",
            )
        if self.n_kv_heads != self.n_heads:
            raise self.refused(
                f"num_key_value_heads is {self.n_kv_heads}; latent attention "
                "has "
                f"num_attention_heads, {self.n_heads}"
            )

    def rope(self) -> CheckpointRope:
        rope = super().rope()
        if rope.scaling.mscale_all_dim:
            return rope.refused(
                f"{self.config.source}: mscale_all_dim is {rope.scaling.mscale_all_dim:g}, by "
                "which all attention scores are scaled; llama.cpp's architecture "
                f"{self.arch} does not do that"
            )
        return rope

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "attention.value_length": self.value_dim,
            "attention.q_lora_rank": self.q_rank,
            "attention.kv_lora_rank": self.kv_rank,
        }

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield weight(f"{module}.q_a_proj", self.q_rank, self.n_embd)
        yield weight(f"{module}.q_a_layernorm", self.q_rank)
        yield weight(f"{module}.q_b_proj", self.n_heads * self.head_dim, self.q_rank)
        yield weight(
            f"{module}.kv_a_proj_with_mqa", self.kv_rank + self.n_rot, self.n_embd
        )
        yield weight(f"{module}.kv_a_layernorm", self.kv_rank)
        per_head = self.head_dim - self.n_rot + self.value_dim
        yield weight(f"{module}.kv_b_proj", self.n_heads * per_head, self.kv_rank)
        yield weight(f"{module}.o_proj", self.n_embd, self.n_heads * self.value_dim)


FAMILY = MiniCPM3
