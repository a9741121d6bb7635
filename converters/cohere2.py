"""Cohere's Command R7B and Command A: three layers of four slide and rotate, the fourth attends to
everything and does not rotate; attention and feed-forward side by side behind one layer norm
without a bias.

llama.cpp turns the cached keys of the layers that do not rotate too when a context is shifted,
which no file can prevent: do not roll the context of these models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule
from ggext.converters.llama import Llama, LlamaWithLayerNorm


class Cohere2(LlamaWithLayerNorm):
    arch = "cohere2"
    defaults = {
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
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

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            **self.sliding_window(4),
            "logit_scale": self.config.number("logit_scale"),
        }

    def norm(self, module: str) -> Iterator[TensorRule]:
        return Llama.norm(self, module)

    def norms(self, block: str) -> Iterator[TensorRule]:
        return self.norm(f"{block}.input_layernorm")


FAMILY = Cohere2
