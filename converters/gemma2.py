"""Gemma 2: norms on both sides of attention and feed-forward, of which the file has the difference
from 1, capped scores and logits, and a sliding window in every other layer.

ggml looks GELU up in a table of float16. That costs the tiny models of the tests a KL of 1.5e-6
(Gemma 2) and 7.7e-6 (Gemma 3) from transformers. With the same table there it is below 4e-7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import QKV, Llama


class Gemma2(Llama):
    """``scaled_by_width``: so many layers tell llama.cpp that the scores are divided by
    √(hidden_size / heads), in place of the square root of a head's size. ``period``: each n-th
    layer has no window, if nothing else is said."""

    arch = "gemma2"
    defaults = {
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    }
    activations = ("gelu_pytorch_tanh",)
    biased = QKV
    has_output = False
    scaled_by_width = 46
    period = 2

    def check(self) -> None:
        why = f"llama.cpp's architecture {self.arch}"
        self.require(
            "hidden_activation", self.activations, f"{why} uses {self.activations[0]}"
        )
        self.require(
            "use_bidirectional_attention", False, f"{why} attends to what was before"
        )
        divisor = (
            self.n_embd // self.n_heads
            if self.n_layers == self.scaled_by_width
            else self.head_dim
        )
        self.require(
            "query_pre_attn_scalar", divisor, f"{why} divides the scores by √{divisor}"
        )
        self.check_caps()

    def check_caps(self) -> None:
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if self.config.number(name, default=None) is None:
                raise self.refused(
                    f"{name} is null; llama.cpp's architecture {self.arch} caps"
                )
        if not self.config.flag("tie_word_embeddings"):
            raise self.refused(
                f"tie_word_embeddings is false, and llama.cpp's architecture "
                f"{self.arch} has no "
                "output matrix but the embedding"
            )

    def metadata(self) -> dict[str, Any]:
        caps = {
            "attn_logit_softcapping": self.config.number(
                "attn_logit_softcapping", default=None
            ),
            "final_logit_softcapping": self.config.number(
                "final_logit_softcapping", default=None
            ),
        }
        return (
            super().metadata()
            | {name: value for name, value in caps.items() if value is not None}
            | self.sliding_window(self.period)
        )

    def norm(self, module: str) -> Iterator[TensorRule]:
        yield weight(module, self.n_embd, plus=1.0)

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from super().norms(block)
        yield from self.norm(f"{block}.pre_feedforward_layernorm")
        yield from self.norm(f"{block}.post_feedforward_layernorm")


FAMILY = Gemma2
