"""OLMo 2: Llama's blocks with the norms after attention and feed-forward, and norms of all queries
and keys."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import QKV, Llama


class Olmo2(Llama):
    arch = "olmo2"
    defaults = {"rms_norm_eps": 1e-5}
    biased = QKV
    free_head_dim = False
    needs_output = True

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from self.norm(f"{block}.post_attention_layernorm")
        yield from self.norm(f"{block}.post_feedforward_layernorm")

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.n_heads * self.head_dim)
        yield weight(f"{module}.k_norm", self.n_kv_heads * self.head_dim)


FAMILY = Olmo2
