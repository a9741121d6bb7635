"""Nemotron 4 and Minitron: layer norms whose weights are stored less 1, a squared ReLU, half of
each head rotated."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import QKV, LlamaWithLayerNorm


class Nemotron(LlamaWithLayerNorm):
    arch = "nemotron"
    defaults = {"norm_eps": 1e-5}
    activations = ("relu2",)
    biased = (*QKV, "o_proj", "up_proj", "down_proj")
    rotates_part = True
    free_head_dim = False
    needs_output = True
    epsilon = "norm_eps"

    def norm(self, module: str) -> Iterator[TensorRule]:
        yield weight(module, self.n_embd, plus=1.0)
        yield TensorRule((f"{module}.bias",), (self.n_embd,))

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield from self.project(module, "up_proj", self.n_ff, self.n_embd)
        yield from self.project(module, "down_proj", self.n_embd, self.n_ff)


FAMILY = Nemotron
