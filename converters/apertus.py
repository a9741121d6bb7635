"""Apertus: Llama's blocks with norms of each head's query and key and a feed-forward part of two
projections, whose activation xIELU has four parameters in each layer: llama.cpp keeps them as
metadata."""

from __future__ import annotations

from collections.abc import Iterator

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import QKV, Llama


class Apertus(Llama):
    arch = "apertus"
    defaults = {"rms_norm_eps": 1e-5}
    activations = ("xielu",)
    biased = (*QKV, "o_proj")
    needs_output = True

    def scalars(self) -> dict[str, list[str]]:
        layers = range(self.n_layers)
        return {
            f"xielu.{name}": [f"model.layers.{i}.mlp.act_fn.{name}" for i in layers]
            for name in ("alpha_n", "alpha_p", "beta", "eps")
        }

    def scalar_shape(self, name: str) -> tuple[int, ...]:
        return (1,) if ".alpha_" in name else ()

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from self.norm(f"{block}.attention_layernorm")
        yield from self.norm(f"{block}.feedforward_layernorm")

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield weight(f"{module}.q_norm", self.head_dim)
        yield weight(f"{module}.k_norm", self.head_dim)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer
        yield weight(f"{module}.up_proj", self.n_ff, self.n_embd)
        yield weight(f"{module}.down_proj", self.n_embd, self.n_ff)


FAMILY = Apertus
