"""StarCoder 1 and SantaCoder: GPT-2 whose queries share one key and value, or each have their own.

ggml looks GELU up in a table of float16, which costs the tiny models of the tests a KL of some
1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ggext.converters.base import TensorRule, grouped_to_blocks
from ggext.converters.gpt2 import Gpt2


class GptBigCode(Gpt2):
    arch = "starcoder"
    defaults = Gpt2.defaults | {"hidden_act": "gelu_pytorch_tanh", "multi_query": True}
    stores_columns = False

    def check(self) -> None:
        super().check()
        self.n_kv_heads = 1 if self.config.flag("multi_query") else self.n_heads

    def queries_keys_and_values(self, module: str) -> Iterator[TensorRule]:
        rows = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        order = partial(grouped_to_blocks, self.n_heads, self.n_heads, self.head_dim)
        many = self.n_kv_heads > 1
        columns = order if many else None
        return self.dense(module, rows, self.n_embd, columns)


FAMILY = GptBigCode
