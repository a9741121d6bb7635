"""Hunyuan's dense models: Llama's blocks with norms of each head's query and key, after their
rotation.

These norms take a gain of the rotation away, in transformers as here. llama.cpp's context shift
turns the cached keys after them, which is not the same as before them. Do not roll the context of
these models.
"""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import QKV, Llama


class HunyuanDense(Llama):
    arch = "hunyuan-dense"
    defaults = {"rms_norm_eps": 1e-5}
    biased = QKV

    def check(self) -> None:
        super().check()
        self.require(
            "use_cla",
            False,
            f"llama.cpp's architecture {self.arch} has keys and values in every layer",
        )

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.query_layernorm", self.head_dim)
        yield weight(f"{module}.key_layernorm", self.head_dim)


FAMILY = HunyuanDense
