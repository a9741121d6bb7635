"""Granite 4 whose layers all attend (350M, 1B, Micro): Granite 3 whose feed-forward part is the
shared expert, with routed ones or without.

Those with layers of Mamba 2 (the H models) are not converted yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.granite import Granite
from ggext.converters.granitemoe import gate_and_up
from ggext.converters.granitemoeshared import GraniteMoeShared
from ggext.converters.llama import QKV

from ggext.errors import CheckpointError

_ATTENTION = {"attention", "full_attention"}  # transformers 4 and 5


class GraniteMoeHybrid(GraniteMoeShared):
    arch = "granite"
    defaults = GraniteMoeShared.defaults | {
        "shared_intermediate_size": 1024,
        "position_embedding_type": None,
    }

    def check(self) -> None:
        kinds = self.config.values.get("layer_types") or self.config.values.get(
            "layers_block_type"
        )
        if kinds is None or not set(map(str, kinds)) <= _ATTENTION:
            raise CheckpointError(
                f"{self.config.source}: layer_types names layers of Mamba 2; of Granite 4 only the "
                "models whose layers all attend are converted"
            )
        self.n_experts = self.config.integer("num_local_experts", minimum=0)
        self.n_shared_ff = self.config.integer("shared_intermediate_size")
        if self.n_experts:
            self.arch, self.biased = "granitemoe", (*QKV, "o_proj")
        else:
            self.n_ff = self.n_shared_ff
        if self.config.values["position_embedding_type"] != "rope":
            raise CheckpointError(
                f"{self.config.source}: position_embedding_type is "
                f"{self.config.values['position_embedding_type']!r}, so that the model does not "
                "rotate; a Granite 4 whose layers all attend is converted with rope"
            )
        super(GraniteMoeShared, self).check() if self.n_experts else Granite.check(self)

    def metadata(self) -> dict[str, Any]:
        return super().metadata() if self.n_experts else Granite.metadata(self)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if self.n_experts:
            yield from super().mlp(module, layer)
            return
        block = module.replace(".mlp", ".shared_mlp")
        target = f"blk.{layer}.ffn_{{}}.weight"
        yield from gate_and_up(
            f"{block}.input_linear", target, 2 * self.n_ff, self.n_embd
        )
        yield weight(
            f"{block}.output_linear",
            self.n_embd,
            self.n_ff,
            target=target.format("down"),
        )


FAMILY = GraniteMoeHybrid
