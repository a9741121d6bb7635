"""Kimi K2.5, K2.6 and K2.7 Code, which see too: what concerns text is Kimi K2, its experts in INT4
as they are published."""

from __future__ import annotations

from ggext.converters.base import text_part_name
from ggext.converters.deepseek_v3 import DeepseekV3


class KimiK25(DeepseekV3):
    tied_as_part = True

    def stored_name(self, name: str) -> str:
        """transformers 5.23 saves the text's layers as ``blocks``."""
        return text_part_name(name).replace("model.blocks.", "model.layers.", 1)


FAMILY = KimiK25
