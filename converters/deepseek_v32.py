"""DeepSeek 3.2: DeepSeek 3 whose tokens attend to those alone that a small indexer chooses.

llama.cpp chooses the same tokens, but among those of equal score. Scores of 0 are equal, and only
indexers of few heads have many: with 4 heads a tiny model differs by a KL of 0.06 to 0.14 nats,
with 16 by 1e-11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, weight, with_bias
from ggext.converters.deepseek_v3 import DeepseekV3
from ggext.converters.glm4_moe_lite import Glm4MoeLite


class DeepseekV32(Glm4MoeLite):
    arch = "deepseek32"
    defaults = DeepseekV3.defaults | {
        "q_lora_rank": 1536,
        "n_routed_experts": 256,
        "index_topk": 2048,
        "index_head_dim": 128,
        "index_n_heads": 64,
    }

    def check(self) -> None:
        super().check()
        number = self.config.integer
        self.n_index = number("index_n_heads")
        least = max(64, number("qk_rope_head_dim"))
        self.index_dim = number("index_head_dim", minimum=least)
        if self.index_dim & (self.index_dim - 1):
            raise self.refused(
                f"index_head_dim is {self.index_dim}; llama.cpp's "
                f"architecture {self.arch} has a power of two"
            )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "attention.indexer.head_count": self.n_index,
            "attention.indexer.key_length": self.index_dim,
            "attention.indexer.top_k": self.config.integer("index_topk"),
        }

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        indexer = f"{module}.indexer"
        yield weight(f"{indexer}.wq_b", self.n_index * self.index_dim, self.q_rank)
        yield weight(f"{indexer}.wk", self.index_dim, self.n_embd)
        yield from with_bias(f"{indexer}.k_norm", self.index_dim)
        yield weight(f"{indexer}.weights_proj", self.n_index, self.n_embd)


FAMILY = DeepseekV32
