"""Gemma 1: Llama's blocks, norms of which the file has the difference from 1, and GELU, which ggml
looks up in a table of float16 (``gemma2.py``)."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import Llama


class Gemma(Llama):
    arch = "gemma"
    defaults = {
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    }
    activations = ("gelu_pytorch_tanh",)
    biased = ()

    def check(self) -> None:
        super().check()
        why = f"llama.cpp's architecture {self.arch}"
        self.require(
            "hidden_activation", self.activations, f"{why} uses {self.activations[0]}"
        )
        self.require(
            "use_bidirectional_attention", False, f"{why} attends to what was before"
        )
        self.require(
            "tie_word_embeddings", True, f"{why} has no output matrix but the embedding"
        )

    def norm(self, module: str) -> Iterator[TensorRule]:
        yield weight(module, self.n_embd, plus=1.0)


FAMILY = Gemma
