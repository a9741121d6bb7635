"""Granite 4's tiny previews: Granite's mixture of experts with one more that is always asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.granitemoe import GraniteMoe, gate_and_up


class GraniteMoeShared(GraniteMoe):
    defaults = GraniteMoe.defaults | {"shared_intermediate_size": 0}

    def check(self) -> None:
        super().check()
        self.n_shared_ff = self.config.integer("shared_intermediate_size", minimum=0)

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "expert_shared_feed_forward_length": self.n_shared_ff
        }

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        yield from super().mlp(module, layer)
        if not self.n_shared_ff:
            return
        block = module.replace(".mlp", ".shared_mlp")
        target = f"blk.{layer}.ffn_{{}}_shexp.weight"
        yield from gate_and_up(
            f"{block}.input_linear", target, 2 * self.n_shared_ff, self.n_embd
        )
        yield weight(f"{block}.output_linear", self.n_embd, self.n_shared_ff)


FAMILY = GraniteMoeShared
