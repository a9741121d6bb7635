"""Gemma 3: Gemma 2 with norms of each head's query and key in place of capped scores, and windows
in five of six layers, which rotate by a base of their own and are never scaled. Of a model that
sees too, the text part."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, text_part_name, weight
from ggext.converters.gemma2 import Gemma2


class Gemma3(Gemma2):
    arch = "gemma3"
    defaults = Gemma2.defaults | {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "model_type": "gemma3_text",
    }
    has_output = True
    tied_as_part = True
    scaled_by_width = 62
    period = 6

    def check_caps(self) -> None:
        why = f"llama.cpp's architecture {self.arch} does not cap the scores"
        self.require("attn_logit_softcapping", None, why)

    def stored_name(self, name: str) -> str:
        return text_part_name(name)

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.head_dim, plus=1.0)
        yield weight(f"{module}.k_norm", self.head_dim, plus=1.0)


FAMILY = Gemma3
