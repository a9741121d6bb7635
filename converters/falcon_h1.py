"""Falcon-H1: each layer attends and is Mamba 2 at once, side by side, and its parts are multiplied
by constants, which the file's weights have in them.

Weights that are not float32 are rounded once more by that, as in llama.cpp's own converter.
llama.cpp's loader takes rope_freqs and its graph leaves them out: a scaling of Llama 3's kind
cannot be said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, weight
from ggext.converters.granitemoehybrid import Mamba2
from ggext.converters.llama import WITHOUT_OUTPUT, Llama

from ggext.checkpoint.config import Config

if TYPE_CHECKING:
    import numpy as np

_SINGLE = (
    "embedding_multiplier lm_head_multiplier key_multiplier attention_in_multiplier "
    "attention_out_multiplier ssm_in_multiplier ssm_out_multiplier"
).split()


class FalconH1(Llama):
    arch = "falcon-h1"
    defaults = {
        **dict.fromkeys(_SINGLE, 1.0),
        "rms_norm_eps": 1e-5,
        "mamba_d_ssm": 1024,
        "mamba_expand": 2,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_head": "auto",
        "mamba_d_conv": 4,
        "mamba_conv_bias": True,
        "mamba_rms_norm": False,
        "mamba_norm_before_gate": True,
    }
    biased = ()
    final_norm = "model.final_layernorm"

    def check(self) -> None:
        super().check()
        inner = self.config.integer("mamba_d_ssm", default=None)
        if inner is None:
            inner = self.config.integer("mamba_expand") * self.n_embd
        self.mamba = Mamba2(
            self.config,
            inner,
            "mamba_n_heads mamba_n_groups mamba_d_state mamba_d_conv",
        )
        self.require(
            "mamba_d_head",
            ("auto", inner // self.mamba.heads),
            f"mamba_d_head · mamba_n_heads must be {inner}",
        )
        self.normed = self.config.flag("mamba_rms_norm")
        if self.normed:
            self.require(
                "mamba_norm_before_gate",
                False,
                "llama.cpp's architecture falcon-h1 norms after the gate",
            )
        self.times = {name: self.config.number(name) for name in _SINGLE}
        self.of_gate, self.of_down = self._several("mlp_multipliers", 2)
        self.of_parts = self._several("ssm_multipliers", 5)

    def _several(self, name: str, count: int) -> list[float]:
        given = self.config.values.get(name)
        given = [1.0] * count if given is None else given
        if not isinstance(given, list) or len(given) != count:
            raise self.refused(f"{name} is {given!r:.60}, not {count} numbers")
        each = [Config({name: value}, self.config.source) for value in given]
        return [config.number(name) for config in each]

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | self.mamba.metadata()

    def tensors(self) -> Iterator[TensorRule]:
        times = self.times
        embedding = (self.vocab_size, self.n_embd)
        yield weight(self.embedding, *embedding, scale=times["embedding_multiplier"])
        yield from self.norm(self.final_norm)
        tied = {"target": "output.weight"} if self.is_tied else {"hint": WITHOUT_OUTPUT}
        source = self.embedding if self.is_tied else self.head
        yield weight(
            source,
            *embedding,
            scale=times["lm_head_multiplier"],
            **tied,
        )
        conv_bias = self.config.flag("mamba_conv_bias")
        for i in range(self.n_layers):
            block = f"model.layers.{i}"
            yield from self.norm(f"{block}.input_layernorm")
            yield weight(
                f"{block}.pre_ff_layernorm",
                self.n_embd,
                target=f"blk.{i}.ffn_norm",
            )
            yield from self.multiplied(self.attention(f"{block}.self_attn"))
            yield from self.multiplied(
                self.mamba.tensors(
                    f"{block}.mamba",
                    f"blk.{i}",
                    conv_bias=conv_bias,
                    normed=self.normed,
                )
            )
            yield from self.multiplied(self.mlp(f"{block}.feed_forward", i))

    def multiplied(self, rules: Iterator[TensorRule]) -> Iterator[TensorRule]:
        """With what each matrix's products are multiplied by."""
        times = self.times
        attention_in = times["attention_in_multiplier"]
        scales: dict[str, Any] = {
            "q_proj": attention_in,
            "k_proj": attention_in * times["key_multiplier"],
            "v_proj": attention_in,
            "o_proj": times["attention_out_multiplier"],
            "in_proj": self._of_in_proj,
            "out_proj": times["ssm_out_multiplier"],
            "gate_proj": self.of_gate,
            "down_proj": self.of_down,
        }
        for rule in rules:
            module = rule.sources[0].removesuffix(".weight").rpartition(".")[2]
            yield replace(rule, scale=scales.get(module, 1.0))

    def _of_in_proj(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        import numpy as np

        mamba = self.mamba
        written = mamba.groups * mamba.state
        sizes = (mamba.inner, mamba.inner, written, written, mamba.heads)
        of_rows: np.ndarray[Any, np.dtype[np.float64]] = np.repeat(
            np.array(self.of_parts) * self.times["ssm_in_multiplier"], sizes
        )
        return of_rows


FAMILY = FalconH1
