"""Granite 3's mixture of experts: Granite with routed experts whose gate and other projection are
one tensor."""

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


#: Names that transformers 5 has in memory → those of the checkpoints.
_MAPPED = {
    "block_sparse_moe.experts.gate_up_proj": "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.experts.down_proj": "block_sparse_moe.output_linear.weight",
    "block_sparse_moe.router.weight": "block_sparse_moe.router.layer.weight",
}


def gate_and_up(module: str, target: str, *shape: int) -> Iterator[TensorRule]:
    """The two tensors that a module's weight holds in its rows, one after the other; ``target``:
    their names, with ``{}`` for gate or up."""
    *count, rows, columns = shape
    for name, part in (("gate", slice(0, rows // 2)), ("up", slice(rows // 2, None))):
        yield weight(
            module,
            *shape,
            target=target.format(name),
            arranged=partial(_rows, part),
            written=(*count, rows // 2, columns),
        )


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

    def stored_name(self, name: str) -> str:
        for saved, known in _MAPPED.items():
            name = name.replace(saved, known)
        return name

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        block = module.replace(".mlp", ".block_sparse_moe")
        yield weight(f"{block}.router.layer", self.n_experts, self.n_embd)
        target = f"blk.{layer}.ffn_{{}}_exps.weight"
        both = (self.n_experts, 2 * self.n_ff, self.n_embd)
        yield from gate_and_up(f"{block}.input_linear", target, *both)
        yield weight(f"{block}.output_linear", self.n_experts, self.n_embd, self.n_ff)


FAMILY = GraniteMoe
