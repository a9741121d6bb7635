"""Ministral 3 and Mistral Small 3 and 4 that see too: what concerns text is Ministral 3, Mistral or
Mistral 4."""

from __future__ import annotations

from dataclasses import replace

from ggext.converters.base import Family, text_part_name
from ggext.converters.ministral3 import Ministral3
from ggext.converters.mistral import Mistral
from ggext.converters.mistral4 import Mistral4

from ggext.checkpoint.config import Config

_OF_MISTRAL = {**Mistral.defaults, "rms_norm_eps": 1e-6, "head_dim": None}


class Mistral3(Ministral3):
    """llama.cpp's architecture of both."""

    tied_as_part = True

    @classmethod
    def of(cls, config: Config) -> Family:
        if config.section("text_config").get("model_type") == "mistral4":
            return Mistral4(config)
        return cls(config)

    def __init__(self, config: Config) -> None:
        text = config.section("text_config")
        kind = text.get("model_type", "mistral")
        self.grows = kind != "mistral"
        usual = {**(_OF_MISTRAL if kind == "mistral" else {}), "model_type": kind}
        super().__init__(
            replace(config, values={**config.values, "text_config": {**usual, **text}})
        )

    def stored_name(self, name: str) -> str:
        return text_part_name(name)


FAMILY = Mistral3
