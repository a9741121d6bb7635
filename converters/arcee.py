"""Arcee's AFM: Llama's blocks with a feed-forward part of two projections and a squared ReLU."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import QKV, Llama


class Arcee(Llama):
    arch = "arcee"
    defaults = {"rms_norm_eps": 1e-5}
    activations = ("relu2",)
    biased = QKV

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield weight(f"{module}.up_proj", self.n_ff, self.n_embd)
        yield weight(f"{module}.down_proj", self.n_embd, self.n_ff)


FAMILY = Arcee
