"""EXAONE 4: Llama's blocks with the norms after attention and feed-forward, and norms of each
head's query and key.

The 32B model has windows in three of four layers, and only those rotate; llama.cpp knows them by
their 64 layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import QKV, Llama

from ggext.llama_cpp_facts.sliding import SLIDING


class Exaone4(Llama):
    arch = "exaone4"
    defaults = {"rms_norm_eps": 1e-5, "sliding_window": 4096}
    biased = QKV
    free_head_dim = False

    def check(self) -> None:
        super().check()
        depth = SLIDING[self.arch].depth
        window = self.config.integer("sliding_window", default=None)
        if (window is not None) is not (self.n_layers == depth):
            raise self.refused(
                f"sliding_window is {window} in {self.n_layers} layers; "
                "llama.cpp's architecture "
                f"{self.arch} has windows in models of {depth} layers and in no others"
            )
        pattern = self.config.values.get("sliding_window_pattern")
        if isinstance(pattern, str):  # LLLG: where the layers without a window are
            period = pattern.find("G") + 1
            self.config = self.config.with_values(sliding_window_pattern=period)
            if period != len(pattern) or not set(pattern) <= {"L", "G"}:
                raise self.refused(
                    f"sliding_window_pattern {pattern!r} is not known here"
                )

    def metadata(self) -> dict[str, Any]:
        slides = self.config.values.get("sliding_window") is not None
        return super().metadata() | (self.sliding_window(4) if slides else {})

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from self.norm(f"{block}.post_attention_layernorm")
        yield from self.norm(f"{block}.post_feedforward_layernorm")

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.head_dim)
        yield weight(f"{module}.k_norm", self.head_dim)


FAMILY = Exaone4
