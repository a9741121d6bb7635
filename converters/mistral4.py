"""Mistral Small 4: DeepSeek 3's attention and experts, chosen by probabilities, and queries that
grow with their position.

They grow from the context before YaRN on, as the checkpoint says it, whatever scaling replaces its
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, text_part_name
from ggext.converters.deepseek_v2 import DeepseekV2
from ggext.converters.deepseek_v3 import DeepseekV3

from ggext.errors import CheckpointError
from ggext.rope.config import rope_parameters
from ggext.rope.config_keys import integer, number

_ORIGINAL = "original_max_position_embeddings"


class Mistral4(DeepseekV3):
    arch = "mistral4"
    defaults = DeepseekV3.defaults | {
        "first_k_dense_replace": 0,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "q_lora_rank": 1024,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 4,
    }
    tied_as_part = True
    scoring = DeepseekV2.scoring
    gating = DeepseekV2.gating

    def check(self) -> None:
        super().check()
        self.head_dim = self.config.integer(
            "head_dim", default=self.n_plain + self.n_rotated
        )

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | self._temperature()

    def _temperature(self) -> dict[str, Any]:
        parameters = rope_parameters(self.config.values)
        source = self.config.source
        growth = number(
            parameters.get("llama_4_scaling_beta"), 0.0, "llama_4_scaling_beta", source
        )
        if not growth:
            return {}
        if parameters.get(_ORIGINAL) is None:
            raise CheckpointError(
                f"{source}: llama_4_scaling_beta is {growth:g} without {_ORIGINAL}, from which "
                "queries grow; state it in the rope parameters"
            )
        return {
            "attention.temperature_scale": growth,
            "attention.temperature_length": integer(parameters, _ORIGINAL, source),
        }

    def stored_name(self, name: str) -> str:
        return text_part_name(name)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        return DeepseekV2.mlp(self, module, layer)  # no learned correction


FAMILY = Mistral4
