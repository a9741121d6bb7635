"""MPT: layer norms without biases, Q, K and V fused, and attention that falls with distance (ALiBi)
in place of a rotation.

The checkpoints' GELU is the exact one, llama.cpp's the tanh approximation, which ggml looks up in a
table of float16: it costs the tiny models of the tests a KL of some 1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.llama import Llama, LlamaWithLayerNorm

from ggext.checkpoint.config import Config

#: Of attention, which the class takes whatever alibi_bias_max says.
_MOST_BIAS = 8
#: The class has four times as many, whatever expansion_ratio says.
_WIDER = 4


class Mpt(LlamaWithLayerNorm):
    arch = "mpt"
    attribute_map = {
        "max_position_embeddings": "max_seq_len",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    }
    defaults = {
        "max_position_embeddings": 2048,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "expansion_ratio": _WIDER,
        "logit_scale": None,
        "no_bias": True,
    }
    epsilon = "layer_norm_epsilon"
    rotates_part = True
    free_head_dim = False
    embedding = "transformer.wte"

    def __init__(self, config: Config) -> None:
        self.attention_config = (
            config.section("attn_config") if config.values.get("attn_config") else {}
        )
        super().__init__(config)

    def check(self) -> None:
        self.n_kv_heads = self.n_heads
        why = f"transformers' {self.arch} is the usual one alone"
        self.require("expansion_ratio", _WIDER, why)
        self.require("logit_scale", None, why)
        self.require("no_bias", True, why)
        usual = {
            "alibi": True,
            "alibi_bias_max": _MOST_BIAS,
            "attn_type": "multihead_attention",
            "prefix_lm": False,
            "qk_ln": False,
        }
        attention = self.attention_config
        others = [
            name for name, value in usual.items() if attention.get(name, value) != value
        ]
        if attention.get("softmax_scale") not in (None, self.head_dim**-0.5):
            others.append("softmax_scale")
        if others:
            shown = ", ".join(f"{name} {attention[name]!r:.40}" for name in others)
            raise self.refused(f"attn_config has {shown}; {why}")

    def read_n_ff(self, config: Config) -> int:
        del config  # the class has no key for it
        return int(_WIDER * self.n_embd)

    def metadata(self) -> dict[str, Any]:
        config = replace(self.config, values=self.attention_config)
        clip = config.number("clip_qkv", default=None)
        return (
            super().metadata()
            | {
                "context_length": self.config.integer("max_position_embeddings"),
                "attention.max_alibi_bias": float(_MOST_BIAS),
            }
            | ({"attention.clamp_kqv": clip} if clip else {})
        )

    def norm(self, module: str) -> Iterator[TensorRule]:
        return Llama.norm(self, module)

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm("transformer.norm_f")
        yield from self.output()
        for i in range(self.n_layers):
            block = f"transformer.blocks.{i}"
            yield from self.norm(f"{block}.norm_1")
            yield from self.norm(f"{block}.norm_2")
            yield weight(f"{block}.attn.Wqkv", 3 * self.n_embd, self.n_embd)
            yield weight(f"{block}.attn.out_proj", self.n_embd, self.n_embd)
            yield weight(f"{block}.ffn.up_proj", self.n_ff, self.n_embd)
            yield weight(f"{block}.ffn.down_proj", self.n_embd, self.n_ff)


FAMILY = Mpt
