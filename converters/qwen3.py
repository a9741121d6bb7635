"""Qwen 3: Qwen 2 without biases and with a norm of each head's query and key."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import Llama
from ggext.converters.qwen2 import Qwen2


class Qwen3(Qwen2):
    arch = "qwen3"
    defaults = {"head_dim": 128}
    bias_flags = Llama.bias_flags

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.head_dim)
        yield weight(f"{module}.k_norm", self.head_dim)


FAMILY = Qwen3
