"""Granite 3's mixture of experts: Granite with routed experts whose gate and other projection are one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.granite import Granite
from ggext.converters.llama import QKV

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]


def _rows(part: slice, matrices: _Array) -> _Array:
    return matrices[..., part, :]


class GraniteMoe(Granite):
    arch = "granitemoe"
    defaults = Granite.defaults | {"num_local_experts": 8, "num_experts_per_tok": 2}
    biased = (*QKV, "o_proj")

    def check(self) -> None:
        super().check()
        self.n_experts = self.config.integer("num_local_experts")

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_count": self.n_experts,
            "expert_used_count": self.config.integer("num_experts_per_tok"),
        }

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        block = module.replace(".mlp", ".block_sparse_moe")
        yield weight(f"{block}.router.layer", self.n_experts, self.n_embd)
        both = (self.n_experts, 2 * self.n_ff, self.n_embd)
        for name, part in (("gate", slice(0, self.n_ff)), ("up", slice(self.n_ff, None))):
            yield weight(
                f"{block}.input_linear", *both, target=f"blk.{layer}.ffn_{name}_exps.weight",
                arranged=partial(_rows, part), written=(self.n_experts, self.n_ff, self.n_embd),
            )  # fmt: skip
        yield weight(f"{block}.output_linear", self.n_experts, self.n_embd, self.n_ff)


FAMILY = GraniteMoe
