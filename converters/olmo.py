"""OLMo 1: Llama's blocks with layer norms that have neither weights nor biases; queries, keys and
values may be clipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule
from ggext.converters.llama import Llama

_EPSILON = 1e-5  # of transformers' OlmoLayerNorm


class Olmo(Llama):
    arch = "olmo"
    biased = ()
    free_head_dim = False

    def metadata(self) -> dict[str, Any]:
        limit = self.config.number("clip_qkv", default=None)
        clamp = {} if limit is None else {"attention.clamp_kqv": limit}
        return (
            super(Llama, self).metadata()
            | {"attention.layer_norm_epsilon": _EPSILON}
            | clamp
        )

    def norm(self, module: str) -> Iterator[TensorRule]:
        del module
        return iter(())


FAMILY = Olmo
