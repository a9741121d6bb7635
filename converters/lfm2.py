"""LFM 2: layers of attention, with norms of each head's query and key, among layers of a short
convolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggext.converters.base import TensorRule, names_each, weight
from ggext.converters.llama import Llama

from ggext.checkpoint.config import Config


class Lfm2(Llama):
    arch = "lfm2"
    defaults = {
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
    }
    free_head_dim = False
    final_norm = "model.embedding_norm"

    def __init__(self, config: Config) -> None:
        given = Config({**self.defaults, **config.values}, config.source)
        named = {
            "intermediate_size": _feed_forward(given),
            "rms_norm_eps": given.number("norm_eps"),
        }
        if "tie_embedding" in config.values:
            named["tie_word_embeddings"] = given.flag("tie_embedding")
        super().__init__(config.with_values(**named))

    def check(self) -> None:
        super().check()
        self.require(
            "conv_bias", False, f"llama.cpp's architecture {self.arch} has no biases"
        )
        attending = self.config.values.get("full_attn_idxs")
        kinds = self.config.values.get("layer_types")
        if kinds is None:
            chosen = list(range(self.n_layers)) if attending is None else attending
            if not isinstance(chosen, list):
                raise self.refused(
                    f"full_attn_idxs is {chosen!r}; it must be a list of layers"
                )
            kinds = [
                "full_attention" if i in chosen else "conv"
                for i in range(self.n_layers)
            ]
        if not names_each(kinds, self.n_layers, ("full_attention", "conv")):
            raise self.refused(
                f"layer_types is {kinds!r}; it must name full_attention or "
                "conv for each of the "
                f"{self.n_layers} layers"
            )
        if (
            len(set(kinds)) < 2
        ):  # llama.cpp aborts on a model without one of the two caches
            raise self.refused(f"all layers are {kinds[0]}; llama.cpp needs both kinds")
        self.attends = [kind == "full_attention" for kind in kinds]

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "attention.head_count_kv": [
                self.n_kv_heads if attends else 0 for attends in self.attends
            ],
            "shortconv.l_cache": self.config.integer("conv_L_cache"),
        }

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm(self.final_norm)
        yield from self.output()
        for i, attends in enumerate(self.attends):
            block = f"model.layers.{i}"
            yield from self.norm(f"{block}.operator_norm")
            yield from self.norm(f"{block}.ffn_norm")
            yield from (
                self.attention(f"{block}.self_attn")
                if attends
                else self.convolution(f"{block}.conv")
            )
            yield from self.feed_forward(f"{block}.feed_forward", i)

    def feed_forward(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer  # they are alike here
        yield weight(f"{module}.w1", self.n_ff, self.n_embd)
        yield weight(f"{module}.w3", self.n_ff, self.n_embd)
        yield weight(f"{module}.w2", self.n_embd, self.n_ff)

    def attention(self, module: str) -> Iterator[TensorRule]:
        for name, heads in (
            ("q_proj", self.n_heads),
            ("k_proj", self.n_kv_heads),
            ("v_proj", self.n_kv_heads),
        ):
            yield weight(f"{module}.{name}", heads * self.head_dim, self.n_embd)
        yield weight(f"{module}.out_proj", self.n_embd, self.n_embd)
        yield weight(f"{module}.q_layernorm", self.head_dim)
        yield weight(f"{module}.k_layernorm", self.head_dim)

    def convolution(self, module: str) -> Iterator[TensorRule]:
        width = self.config.integer("conv_L_cache")
        yield weight(
            f"{module}.conv", self.n_embd, 1, width, written=(self.n_embd, width)
        )
        yield weight(f"{module}.in_proj", 3 * self.n_embd, self.n_embd)
        yield weight(f"{module}.out_proj", self.n_embd, self.n_embd)


def _feed_forward(config: Config) -> int:
    """As transformers' Lfm2MLP makes it of the configured size."""
    size: int = config.integer("block_ff_dim", "intermediate_size")
    if config.flag("block_auto_adjust_ff_dim"):
        multiple = config.integer("block_multiple_of")
        size = int(
            config.number("block_ffn_dim_multiplier", default=1.0) * int(2 * size / 3)
        )
        size = -(-size // multiple) * multiple
    return size


FAMILY = Lfm2
