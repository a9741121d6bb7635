"""Phi 3, 3.5 and 4: Llama's blocks with fused projections and, for long contexts, LongRoPE."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import Windowed


class Phi3(Windowed):
    arch = "phi3"
    defaults = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}
    biased = ()
    rotates_part = True
    free_head_dim = False

    def attention(self, module: str) -> Iterator[TensorRule]:
        rows = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        yield weight(f"{module}.qkv_proj", rows, self.n_embd)
        yield weight(f"{module}.o_proj", self.n_embd, self.n_embd)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield weight(f"{module}.gate_up_proj", 2 * self.n_ff, self.n_embd)
        yield weight(f"{module}.down_proj", self.n_embd, self.n_ff)


FAMILY = Phi3
