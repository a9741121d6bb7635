"""gpt-oss: routed experts whose gate and other projection are interleaved, mostly in MXFP4,
attention sinks, and a sliding window in every other layer.

Its YaRN does not round the range of blended pairs (``truncate: false``); llama.cpp always does, so
a converted model differs from transformers' (see ``ggext.rope.encode``). The tiny model of the
tests has a KL of 0.31 beyond its window in ggext's contexts, with the nearest whole bounds, and of
0.72 as llama.cpp's own converter writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, with_bias
from ggext.converters.llama import Llama

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]


def _gates(interleaved: _Array) -> _Array:
    return interleaved[:, 0::2]


def _ups(interleaved: _Array) -> _Array:
    return interleaved[:, 1::2]


def _transposed(experts: _Array) -> _Array:
    return experts.swapaxes(1, 2)


class GptOss(Llama):
    arch = "gpt-oss"
    needs_output = True
    defaults = {
        "rms_norm_eps": 1e-5,
        "head_dim": 64,
        "sliding_window": 128,
        "attention_bias": True,
    }

    def check(self) -> None:
        super().check()
        why = f"llama.cpp's architecture {self.arch}"
        self.require("attention_bias", True, f"{why} has biases")
        self.require("swiglu_alpha", 1.702, f"{why} takes 1.702")
        self.require("swiglu_limit", 7.0, f"{why} takes 7")
        self.n_experts = self.config.integer("num_local_experts", "num_experts")

    def metadata(self) -> dict[str, Any]:
        return (
            super().metadata()
            | {
                "expert_count": self.n_experts,
                "expert_used_count": self.config.integer(
                    "num_experts_per_tok", "experts_per_token"
                ),
                "expert_feed_forward_length": self.n_ff,
            }
            | self.sliding_window(2)
        )

    def attention(self, module: str) -> Iterator[TensorRule]:
        yield from super().attention(module)
        yield TensorRule(
            (f"{module}.sinks",),
            (self.n_heads,),
            f"blk.{module.split('.')[2]}.attn_sinks.weight",
        )

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        yield from with_bias(f"{module}.router", self.n_experts, self.n_embd)
        count = self.n_experts
        block = f"blk.{layer}.ffn"
        for name, part in (("gate", _gates), ("up", _ups)):
            source = f"{module}.experts.gate_up_proj"
            shape = (count, self.n_ff, self.n_embd)
            yield self._projection(
                source, 2 * self.n_ff, f"{block}_{name}_exps.weight", shape, part
            )
            yield TensorRule(
                (f"{source}_bias",),
                (count, 2 * self.n_ff),
                f"{block}_{name}_exps.bias",
                arranged=part,
                written=(count, self.n_ff),
            )
        source = f"{module}.experts.down_proj"
        shape = (count, self.n_embd, self.n_ff)
        yield self._projection(
            source, self.n_embd, f"{block}_down_exps.weight", shape, lambda rows: rows
        )
        yield TensorRule(
            (f"{source}_bias",), (count, self.n_embd), f"{block}_down_exps.bias"
        )

    def _projection(
        self, source: str, rows: int, target: str, written: tuple[int, ...], part: Any
    ) -> TensorRule:
        """``rows`` of each expert, of which ``part`` is taken; not packed, they are stored as
        columns."""
        count, _, columns = written
        packed = TensorRule(
            (f"{source}_blocks",),
            (count, rows, columns // 32, 16),
            target,
            arranged=part,
            written=written,
            scales=(f"{source}_scales",),
        )
        return TensorRule(
            (source,),
            (count, columns, rows),
            target,
            arranged=lambda a: part(_transposed(a)),
            written=written,
            instead=packed,
        )


FAMILY = GptOss
