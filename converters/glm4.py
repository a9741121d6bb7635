"""GLM-4-0414: norms before and after attention and feed-forward, gate and up fused, half of each
head rotated in neighbouring pairs."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import QKV, Llama


class Glm4(Llama):
    arch = "glm4"
    defaults = {"rms_norm_eps": 1.5625e-7, "head_dim": 128, "attention_bias": True}
    biased = QKV
    rotates_part = True
    rotates_adjacent = True

    def norms(self, block: str) -> Iterator[TensorRule]:
        for name in (
            "input_layernorm",
            "post_self_attn_layernorm",
            "post_attention_layernorm",
            "post_mlp_layernorm",
        ):
            yield from self.norm(f"{block}.{name}")

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield weight(f"{module}.gate_up_proj", 2 * self.n_ff, self.n_embd)
        yield weight(f"{module}.down_proj", self.n_embd, self.n_ff)


FAMILY = Glm4
