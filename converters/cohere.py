"""Cohere's Command R and R+ and Aya: attention and feed-forward side by side after one layer norm
without a bias; from 64 layers on with a layer norm of each head's query and key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import Llama, LlamaWithLayerNorm

#: Layers from which llama.cpp's loader wants those norms.
_WITH_HEAD_NORMS = 64


class Cohere(LlamaWithLayerNorm):
    arch = "command-r"
    defaults = {
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
        "use_qk_norm": False,
    }
    biased = ()
    free_head_dim = False
    has_output = False
    rotates_adjacent = True

    def check(self) -> None:
        super().check()
        self.require(
            "tie_word_embeddings",
            True,
            f"llama.cpp's architecture {self.arch} has no output matrix",
        )
        self.check_head_norms()

    def check_head_norms(self) -> None:
        self.has_head_norms = self.n_layers >= _WITH_HEAD_NORMS
        words = "has" if self.has_head_norms else "has no"
        self.require(
            "use_qk_norm",
            self.has_head_norms,
            f"llama.cpp's architecture {self.arch} {words} norms of queries and keys in "
            f"{self.n_layers} layers",
        )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {"logit_scale": self.config.number("logit_scale")}

    def norm(self, module: str) -> Iterator[TensorRule]:
        return Llama.norm(self, module)

    def norms(self, block: str) -> Iterator[TensorRule]:
        return self.norm(f"{block}.input_layernorm")

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        if self.has_head_norms:
            yield weight(f"{module}.q_norm", self.n_heads, self.head_dim)
            yield weight(f"{module}.k_norm", self.n_kv_heads, self.head_dim)


FAMILY = Cohere
