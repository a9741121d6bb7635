"""Qwen 3-VL's mixture of experts: Qwen 3-VL with the experts of Qwen 3's.

The published files hold the experts' matrices as columns, transformers saves them as rows, under
one name: the shape tells. Where both shapes are the same, rows are taken, as transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ggext.converters.base import TensorRule, columns_of_each, rows_of_each, weight
from ggext.converters.qwen2_moe import QwenExperts
from ggext.converters.qwen3_vl import Qwen3Vl


class Qwen3VlMoe(QwenExperts, Qwen3Vl):
    arch = "qwen3vlmoe"
    defaults = QwenExperts.defaults | {
        "norm_topk_prob": True
    }  # which the class does not read
    normalizes = True

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        yield weight(f"{module}.gate", self.n_experts, self.n_embd)
        count = self.n_experts
        n_ff = self.n_expert_ff
        n_embd = self.n_embd
        source = f"{module}.experts.gate_up_proj"
        target = f"blk.{layer}.ffn"
        for name, part in (("gate", slice(0, n_ff)), ("up", slice(n_ff, None))):
            forms = [
                TensorRule(
                    (source,),
                    shape,
                    f"{target}_{name}_exps.weight",
                    arranged=partial(arranged, part),
                    written=(count, n_ff, n_embd),
                )
                for arranged, shape in (
                    (rows_of_each, (count, 2 * n_ff, n_embd)),
                    (columns_of_each, (count, n_embd, 2 * n_ff)),
                )
            ]
            yield replace(forms[0], instead=forms[1])
        source = f"{module}.experts.down_proj"
        columns = TensorRule((source,), (count, n_ff, n_embd), transposed=True)
        yield TensorRule(
            (source,),
            (count, n_embd, n_ff),
            f"{target}_down_exps.weight",
            instead=columns,
        )


FAMILY = Qwen3VlMoe
