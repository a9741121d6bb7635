"""Qwen 2 and 2.5 that see too: what concerns text is Qwen 2, its pairs in sections."""

from __future__ import annotations

from ggext.converters.qwen2 import Qwen2


class Qwen2Vl(Qwen2):
    arch = "qwen2vl"
    defaults = {"rms_norm_eps": 1e-5}
    free_head_dim = False

    def stored_name(self, name: str) -> str:
        return name.replace("language_model.", "")


FAMILY = Qwen2Vl
