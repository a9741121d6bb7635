"""IBM's Granite 3: Llama's blocks with four constants, on embeddings, attention, residuals and
logits."""

from __future__ import annotations

from typing import Any

from ggext.converters.llama import Llama

_SCALES = {
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


class Granite(Llama):
    arch = "granite"
    defaults = dict.fromkeys(_SCALES, 1.0)

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            key: self.config.number(name) for name, key in _SCALES.items()
        }


FAMILY = Granite
