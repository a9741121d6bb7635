"""Qwen 3.5 and 3.6: Qwen 3-Next's layers without experts, its pairs in interleaved sections. Of a
model that sees too, the text part. Its layers that predict a second token are left out.

The file has the delta net's values in another order than the checkpoint: in turn by key, as ggml
repeats the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import TYPE_CHECKING

from ggext.converters.base import TensorRule, text_part_name, weight
from ggext.converters.qwen3_next import (
    GatedDeltaNet,
    logarithm_of_negative,
    negative_exponential,
)

if TYPE_CHECKING:
    from ggext.converters.base import RowNumbers


class ValuesInTurn(GatedDeltaNet):
    tied_as_part = False

    def stored_name(self, name: str) -> str:
        return text_part_name(name)

    def mixer(self, module: str, block: str) -> Iterator[TensorRule]:
        inner = self.n_state * self.n_values
        sizes = (self.n_keys, self.n_values // self.n_keys)
        heads = partial(values_in_turn, *sizes, 1, 0)
        values = partial(values_in_turn, *sizes, self.n_state, 0)
        last = partial(values_in_turn, *sizes, self.n_state, self.channels - inner)
        yield weight(f"{module}.in_proj_qkv", self.channels, self.n_embd, rows=last)
        yield weight(f"{module}.in_proj_z", inner, self.n_embd, rows=values)
        yield weight(f"{module}.in_proj_b", self.n_values, self.n_embd, rows=heads)
        yield weight(f"{module}.in_proj_a", self.n_values, self.n_embd, rows=heads)
        yield weight(
            f"{module}.conv1d",
            self.channels,
            1,
            self.width,
            rows=last,
            written=(self.channels, self.width),
        )
        yield TensorRule(
            (f"{module}.dt_bias",), (self.n_values,), f"{block}.ssm_dt.bias", rows=heads
        )
        yield TensorRule(
            (f"{module}.A_log",),
            (self.n_values,),
            f"{block}.ssm_a",
            rows=heads,
            computed=negative_exponential,
            undone=logarithm_of_negative,
        )
        yield weight(f"{module}.norm", self.n_state)
        yield weight(f"{module}.out_proj", self.n_embd, inner, columns=values)


class Qwen35(ValuesInTurn):
    arch = "qwen35"


@cache
def values_in_turn(n_keys: int, n_each: int, n_rows: int, before: int) -> RowNumbers:
    """Row order of ``before`` rows that stay, then of the values' heads of ``n_rows`` each: from
    ``n_each`` neighbours for each key to one for each key, then the next for each."""
    import numpy as np

    rows = np.arange(n_keys * n_each * n_rows).reshape(n_keys, n_each, n_rows)
    values = before + rows.swapaxes(0, 1).reshape(-1)
    return np.concatenate([np.arange(before), values])


FAMILY = Qwen35
