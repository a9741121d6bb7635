"""Granite 4: Granite 3 whose feed-forward part is the shared expert, with routed ones or without.
All layers attend (350M, 1B, Micro), or most are Mamba 2, whose state does not grow with the text
(the H models, which do not rotate)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ggext.converters.base import TensorRule, names_each, weight
from ggext.converters.granite import Granite
from ggext.converters.granitemoe import gate_and_up
from ggext.converters.granitemoeshared import GraniteMoeShared
from ggext.converters.llama import QKV
from ggext.converters.qwen3_next import logarithm_of_negative, negative_exponential

from ggext.checkpoint.config import Config
from ggext.errors import CheckpointError
from ggext.rope.capabilities import ROTATES

if TYPE_CHECKING:
    import numpy as np
    from ggext.converters.base import RowNumbers

#: transformers 4 and 5
_ATTENTION = ("attention", "full_attention")
_MAMBA = ("mamba", "linear_attention")
#: What a limit of the time step is that limits nothing; transformers 5 writes the first.
_UNLIMITED = ([0.0, {"__float__": "Infinity"}], [0.0, float("inf")])
#: The only widening that llama.cpp's loader takes; it ends the process on another.
_EXPAND = 2
_MAMBA2 = {
    "mamba_expand": _EXPAND,
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_head": "auto",
    "mamba_d_conv": 4,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


class Mamba2:
    """The layer of Mamba 2. ``inner``: values of all ``heads`` together; ``state``: values that
    each of them keeps; ``groups``: of heads that share what is written to the state and read from
    it. ``channels``: what the convolution, ``width`` tokens wide, goes over."""

    def __init__(
        self, config: Config, inner: int, keys: str = "heads groups state width"
    ) -> None:
        """``keys``: those of config.json for the heads, groups, state and width, in this order.
        Raises ``CheckpointError`` for sizes that contradict each other."""
        names = keys.split()
        heads, groups, self.state = (config.integer(name) for name in names[:3])
        self.inner = inner
        self.heads = heads
        self.groups = groups
        self.width = config.integer(names[3], minimum=2)
        self.channels = inner + 2 * groups * self.state
        self.n_embd = config.integer("hidden_size")
        if inner % heads or heads % groups:
            raise CheckpointError(
                f"{config.source}: {names[0]} is {heads}, which must divide the layer's width "
                f"{inner} and be a multiple of {names[1]}, {groups}"
            )
        limit = config.values.get("time_step_limit")
        if limit is not None and limit not in _UNLIMITED:
            raise CheckpointError(
                f"{config.source}: time_step_limit is {limit!r}; llama.cpp has no limit"
            )

    def metadata(self) -> dict[str, Any]:
        return {
            "ssm.conv_kernel": self.width,
            "ssm.state_size": self.state,
            "ssm.group_count": self.groups,
            "ssm.time_step_rank": self.heads,
            "ssm.inner_size": self.inner,
        }

    def tensors(
        self, module: str, block: str, *, conv_bias: bool, normed: bool = True
    ) -> Iterator[TensorRule]:
        """``block``: of the GGUF names. ``normed``: whether there is a norm after the gate."""
        rows = self.inner + self.channels + self.heads
        channels = self.channels
        width = self.width
        yield weight(f"{module}.in_proj", rows, self.n_embd)
        yield weight(f"{module}.conv1d", channels, 1, width, written=(channels, width))
        bias = f"{block}.ssm_conv1d.bias"  # llama.cpp adds it without asking for it
        if conv_bias:
            yield TensorRule((f"{module}.conv1d.bias",), (channels,), bias)
        else:
            yield weight(
                f"{module}.conv1d",
                channels,
                1,
                width,
                target=bias,
                view=(channels * width,),
                rows=partial(_every, channels * width, width),
                computed=_zeros,
                written=(channels,),
            )
        each = (self.heads,)
        column = (self.heads, 1)
        yield TensorRule((f"{module}.dt_bias",), each, f"{block}.ssm_dt.bias")
        yield TensorRule(
            (f"{module}.A_log",),
            each,
            f"{block}.ssm_a",
            computed=negative_exponential,
            undone=logarithm_of_negative,
            written=column,
        )
        yield TensorRule((f"{module}.D",), each, f"{block}.ssm_d", written=column)
        if normed:
            grouped = (self.groups, self.inner // self.groups)
            yield weight(f"{module}.norm", self.inner, written=grouped)
        yield weight(f"{module}.out_proj", self.n_embd, self.inner)


def _every(count: int, step: int) -> RowNumbers:
    import numpy as np

    return np.arange(0, count, step)


def _zeros(kernel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bias of a convolution that has none."""
    import numpy as np

    return np.zeros_like(kernel)


class GraniteMoeHybrid(GraniteMoeShared):
    arch = "granite"
    further_archs = ("granitemoe", "granitehybrid")
    attribute_map = {"layer_types": "layers_block_type"}
    defaults = (
        GraniteMoeShared.defaults
        | _MAMBA2
        | {
            "shared_intermediate_size": 1024,
            "position_embedding_type": None,
            "max_position_embeddings": 2048,
        }
    )

    def check(self) -> None:
        kinds = self.config.values.get("layer_types")
        kinds = [_MAMBA[1]] * self.n_layers if kinds is None else kinds
        if not names_each(kinds, self.n_layers, (*_ATTENTION, *_MAMBA)):
            raise self.refused(
                f"layer_types must name {_ATTENTION[1]} or {_MAMBA[1]} for "
                f"each of {self.n_layers} layers"
            )
        self.recurs = [kind in _MAMBA for kind in kinds]
        self.n_experts = self.config.integer("num_local_experts", minimum=0)
        self.n_shared_ff = self.config.integer("shared_intermediate_size")
        self.rotates = self.config.values["position_embedding_type"] == "rope"
        if self.n_experts:
            self.arch = "granitemoe"
            self.biased = (*QKV, "o_proj")
        else:
            self.n_ff = self.n_shared_ff
        if any(self.recurs):
            self._check_mamba()
        elif self.n_experts and not self.rotates:
            raise self.refused(
                f"position_embedding_type is not rope; llama.cpp's "
                f"architecture {self.arch} rotates"
            )
        super(GraniteMoeShared, self).check() if self.n_experts else Granite.check(self)

    def _check_mamba(self) -> None:
        self.arch = "granitehybrid"
        if all(
            self.recurs
        ):  # llama.cpp aborts on a model without one of the two caches
            raise self.refused(
                f"all layers are {_MAMBA[1]}; llama.cpp needs both kinds"
            )
        self.require(
            "mamba_expand", _EXPAND, f"llama.cpp's {self.arch} takes {_EXPAND} alone"
        )
        self.mamba = Mamba2(
            self.config,
            _EXPAND * self.n_embd,
            "mamba_n_heads mamba_n_groups mamba_d_state mamba_d_conv",
        )
        self.require(
            "mamba_d_head",
            ("auto", self.mamba.inner // self.mamba.heads),
            "mamba_d_head · mamba_n_heads must be mamba_expand · hidden_size",
        )

    def metadata(self) -> dict[str, Any]:
        result = super().metadata() if self.n_experts else Granite.metadata(self)
        if not self.rotates:
            context = self.config.integer("max_position_embeddings")
            result |= {ROTATES: False, "context_length": context}
        if not any(self.recurs):
            return result
        heads = [0 if recurs else self.n_kv_heads for recurs in self.recurs]
        return result | self.mamba.metadata() | {"attention.head_count_kv": heads}

    def tensors(self) -> Iterator[TensorRule]:
        if not any(self.recurs):
            yield from super().tensors()
            return
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm(self.final_norm)
        yield from self.output()
        conv_bias = self.config.flag("mamba_conv_bias")
        for i, recurs in enumerate(self.recurs):
            block = f"model.layers.{i}"
            yield from self.norms(block)
            yield from (
                self.mamba.tensors(f"{block}.mamba", f"blk.{i}", conv_bias=conv_bias)
                if recurs
                else self.attention(f"{block}.self_attn")
            )
            yield from self.mlp(f"{block}.mlp", i)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        if self.n_experts:
            yield from super().mlp(module, layer)
            return
        block = module.replace(".mlp", ".shared_mlp")
        target = f"blk.{layer}.ffn_{{}}.weight"
        yield from gate_and_up(
            f"{block}.input_linear", target, 2 * self.n_ff, self.n_embd
        )
        yield weight(
            f"{block}.output_linear",
            self.n_embd,
            self.n_ff,
            target=target.format("down"),
        )


FAMILY = GraniteMoeHybrid
