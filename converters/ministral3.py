"""Ministral 3: Llama's blocks whose queries grow with their position, beyond the context before
YaRN."""

from __future__ import annotations

from typing import Any

from ggext.converters.llama import Windowed


class Ministral3(Windowed):
    arch = "mistral3"
    defaults = {"rms_norm_eps": 1e-5, "head_dim": 128}

    def check(self) -> None:
        super().check()
        self.require_rope("YaRN by 16, and longer queries beyond 16384 tokens")

    def metadata(self) -> dict[str, Any]:
        rope = self.config.section("rope_parameters") or self.config.section("rope_scaling")
        growth = rope.get("llama_4_scaling_beta")
        return super().metadata() | ({"attention.temperature_scale": growth} if growth else {})


FAMILY = Ministral3
