"""Ministral 3 and Mistral Small 3 that see too: what concerns text is Ministral 3 or Mistral."""

from __future__ import annotations

from ggext.converters.ministral3 import Ministral3
from ggext.converters.mistral import Mistral

from ggext.checkpoint.config import Config


class Mistral3(Ministral3):
    """llama.cpp's architecture of both."""

    def __init__(self, config: Config) -> None:
        self.is_mistral = config.section("text_config").get("model_type") == "mistral"
        if self.is_mistral:
            self.defaults = {"rms_norm_eps": 1e-6, **Mistral.defaults}
        super().__init__(config)

    def require_rope(self, otherwise: str) -> None:
        if not self.is_mistral:
            super().require_rope(otherwise)

    def stored_name(self, name: str) -> str:
        return name.replace("language_model.", "")


FAMILY = Mistral3
