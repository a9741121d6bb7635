"""Ministral 3: Llama's blocks whose queries grow with their position, beyond the context before
YaRN."""

from __future__ import annotations

from typing import Any

from ggext.converters.llama import Windowed

from ggext.rope.config import rope_parameters
from ggext.rope.config_keys import number
from ggext.rope.config_reader import CheckpointRope


class Ministral3(Windowed):
    arch = "mistral3"
    defaults = {"rms_norm_eps": 1e-5, "head_dim": 128}
    grows = True

    def rope(self) -> CheckpointRope:
        """Queries grow from the original context on, which an unscaled file does not say apart."""
        rope = super().rope()
        original = rope_parameters(self.config.values).get(
            "original_max_position_embeddings"
        )
        trained = rope.geometry.trained_context
        if (
            not self.grows
            or rope.scaling.method != "none"
            or original in (None, trained)
        ):
            return rope
        return rope.refused(
            f"{self.config.source}: original_max_position_embeddings is {original!r}, from which "
            f"queries grow, without a scaling; llama.cpp lets them grow from the context of "
            f"{trained} on"
        )

    def metadata(self) -> dict[str, Any]:
        beta = rope_parameters(self.config.values).get("llama_4_scaling_beta")
        growth = (
            number(beta, 0.0, "llama_4_scaling_beta", self.config.source)
            if self.grows
            else 0
        )
        return super().metadata() | (
            {"attention.temperature_scale": growth} if growth else {}
        )


FAMILY = Ministral3
