"""Cohere's Command R7B and Command A: Command R whose layers slide and rotate but for every fourth,
which attends to everything and does not rotate.

llama.cpp turns the cached keys of the layers that do not rotate too when a context is shifted. No
file can prevent that: do not roll the context of these models.
"""

from __future__ import annotations

from typing import Any

from ggext.converters.cohere import Cohere


class Cohere2(Cohere):
    arch = "cohere2"
    defaults = {
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    }

    def check_head_norms(self) -> None:
        self.has_head_norms = False

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | self.sliding_window(4)


FAMILY = Cohere2
