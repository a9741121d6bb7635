"""Llama 1 to 3.x and what shares its blocks: TinyLlama, SmolLM, Vicuna."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from ggext.converters.base import (
    Family,
    TensorRule,
    half_split_to_adjacent,
    linear,
    weight,
    with_bias,
)

from ggext.rope.capabilities import capability_of
from ggext.rope.config_reader import CheckpointRope

WITHOUT_OUTPUT = (
    " (the output matrix): the weights are a base model's, and tie_word_embeddings is not true; "
    "set it to true if the embedding is the output"
)
QKV = ("q_proj", "k_proj", "v_proj")
SOFTMAX, SIGMOID = 1, 2  # LLAMA_EXPERT_GATING_FUNC_TYPE
_LARGEST_EPSILON = 1e-5
_MLP = ("gate_proj", "up_proj", "down_proj")


class Llama(Family):
    """Other families differ from it in what they override (`norms`, `attention`, `mlp`), in what
    llama.cpp's architecture does, and in what the checkpoint has."""

    arch = "llama"
    # Names of the activation that the architecture computes.
    activations: tuple[str, ...] = ("silu",)
    # Projections to which it adds a bias.
    biased: tuple[str, ...] = (*QKV, "o_proj", *_MLP)
    # Keys of config.json that say whether there are such biases; transformers goes by them alone.
    bias_flags: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (*QKV, "o_proj"), "attention_bias"
    ) | dict.fromkeys(_MLP, "mlp_bias")
    # Whether it reads how many of a head's dimensions are rotated.
    rotates_part = False
    # Whether a head's size need not be hidden_size / num_attention_heads.
    free_head_dim = True
    # Whether it reads an output matrix even where the model has tied it to the embedding.
    needs_output = False
    # Whether it has no fewer keys and values than queries.
    needs_all_heads = False
    # The module of the last norm.
    final_norm = "model.norm"
    # Whether the checkpoint's rotary pairs are neighbours already.
    rotates_adjacent = False

    def check(self) -> None:
        why = (
            f"llama.cpp's architecture {self.arch} uses {self.activations[0]}; this model is "
            "another family"
        )
        self.require("hidden_act", self.activations, why)
        if not self.free_head_dim and self.head_dim * self.n_heads != self.n_embd:
            raise self.refused(
                f"head_dim is {self.head_dim}; llama.cpp's architecture "
                f"{self.arch} has "
                f"hidden_size / num_attention_heads = {self.n_embd}/{self.n_heads}"
            )
        if self.needs_all_heads and self.n_kv_heads != self.n_heads:
            raise self.refused(
                f"num_key_value_heads is {self.n_kv_heads}; llama.cpp's "
                f"architecture {self.arch} "
                f"has as many as num_attention_heads, {self.n_heads}"
            )
        if self.config.flag("use_sliding_window"):
            raise self.refused(
                f"use_sliding_window is true, and llama.cpp's architecture "
                f"{self.arch} attends "
                "to everything; set it to false to accept that"
            )

    def limit_epsilon(self, largest: float, why: str) -> None:
        """Raises ``CheckpointError`` for an epsilon of the norms that llama.cpp does not compute
        with; up to ``largest`` that makes no difference. ``why``: what the architecture does."""
        epsilon = self.config.number("rms_norm_eps")
        if epsilon > largest:
            raise self.refused(
                f"rms_norm_eps is {epsilon:g}; llama.cpp's architecture "
                f"{self.arch} {why}: at most {largest:g} is alike"
            )

    def rope(self) -> CheckpointRope:
        rope = super().rope()
        n_rot = rope.geometry.n_rot
        if n_rot and n_rot != self.head_dim and not self.rotates_part:
            raise self.refused(
                f"{n_rot} of {self.head_dim} dimensions are rotated "
                f"(partial_rotary_factor); llama.cpp's architecture {self.arch} rotates all"
            )
        return rope

    def metadata(self) -> dict[str, Any]:
        epsilon = self.config.number("rms_norm_eps", default=1e-6)
        return super().metadata() | {"attention.layer_norm_rms_epsilon": epsilon}

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm(self.final_norm)
        yield from self.output()
        for i in range(self.n_layers):
            block = f"model.layers.{i}"
            yield from self.norms(block)
            yield from self.attention_of(f"{block}.self_attn", i)
            yield from self.mlp(f"{block}.mlp", i)

    def output(self) -> Iterator[TensorRule]:
        if not self.is_tied:
            yield weight(self.head, self.vocab_size, self.n_embd, hint=WITHOUT_OUTPUT)
        elif self.needs_output:
            yield weight(
                self.embedding, self.vocab_size, self.n_embd, target="output.weight"
            )

    def norm(self, module: str) -> Iterator[TensorRule]:
        yield weight(module, self.n_embd)

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from self.norm(f"{block}.input_layernorm")
        yield from self.norm(f"{block}.post_attention_layernorm")

    def attention_of(self, module: str, layer: int) -> Iterator[TensorRule]:
        """`attention` of one layer, for families in which it differs from layer to layer."""
        del layer  # they are alike here
        yield from self.attention(module)

    def attention(self, module: str) -> Iterator[TensorRule]:
        q_rows = self.n_heads * self.head_dim
        kv_rows = self.n_kv_heads * self.head_dim
        q_order = k_order = None
        if not self.rotates_adjacent and capability_of(self.arch).layout == "norm":
            q_order = partial(half_split_to_adjacent, self.n_heads, self.head_dim)
            k_order = partial(half_split_to_adjacent, self.n_kv_heads, self.head_dim)
        yield from self.project(module, "q_proj", q_rows, self.n_embd, q_order)
        yield from self.project(module, "k_proj", kv_rows, self.n_embd, k_order)
        yield from self.project(module, "v_proj", kv_rows, self.n_embd)
        yield from self.project(module, "o_proj", self.n_embd, q_rows)

    def mlp(self, module: str, layer: int) -> Iterator[TensorRule]:
        del layer  # what is different from layer to layer elsewhere is not here
        yield from self.project(module, "gate_proj", self.n_ff, self.n_embd)
        yield from self.project(module, "up_proj", self.n_ff, self.n_embd)
        yield from self.project(module, "down_proj", self.n_embd, self.n_ff)

    def project(
        self, module: str, name: str, rows: int, columns: int, order: Any = None
    ) -> Iterator[TensorRule]:
        flag = self.bias_flags.get(name)
        unless = ""
        if flag is not None and not self.config.flag(flag):
            unless = (
                f"{flag} is not true, so that transformers does not read them either (set it to "
                "true if they are meant)"
            )
        return linear(
            f"{module}.{name}",
            rows,
            columns,
            order,
            bias=name in self.biased,
            unless=unless,
        )


def gated(module: str, n_embd: int, n_ff: int) -> Iterator[TensorRule]:
    """The three projections of a feed-forward part without biases, such as that of a shared
    expert."""
    gate, up, down = (f"{module}.{name}" for name in _MLP)
    yield weight(gate, n_ff, n_embd)
    yield weight(up, n_ff, n_embd)
    yield weight(down, n_embd, n_ff)


class Windowed(Llama):
    """A family whose layers may all have a sliding window, which its architecture in llama.cpp has
    not."""

    def rope(self) -> CheckpointRope:
        """With the context up to which attending to everything is the same."""
        rope = super().rope()
        window = self.config.integer("sliding_window", default=None)
        if window is None or window >= rope.geometry.trained_context:
            return rope
        if rope.scaling.method != "none":
            rope = rope.refused(
                f"{self.config.source}: sliding_window is {window}, and llama.cpp's architecture "
                f"{self.arch} attends to everything, which differs beyond {window} tokens; set "
                "sliding_window to null to accept that"
            )
        note = (
            f"sliding_window is {window}, and llama.cpp's architecture {self.arch} attends to "
            "everything: the "
            f"context is {window} tokens, up to which that is the same, and not "
            f"{rope.geometry.trained_context} (set "
            "sliding_window to null in config.json to accept the difference beyond)"
        )
        geometry = replace(rope.geometry, trained_context=window)
        return replace(rope, geometry=geometry, notes=(*rope.notes, note))


class LlamaWithLayerNorm(Llama):
    """Llama's blocks with layer norms, which subtract the mean and add a bias, in place of RMS
    norms."""

    epsilon = "layer_norm_eps"

    def norm(self, module: str) -> Iterator[TensorRule]:
        return with_bias(module, self.n_embd)

    def metadata(self) -> dict[str, Any]:
        return super(Llama, self).metadata() | {
            "attention.layer_norm_epsilon": self.config.number(self.epsilon)
        }


class WithLatents(Llama):
    """Attention whose queries, keys and values are made of short vectors with norms of their own
    (MLA).

    transformers has an epsilon of 1e-6 in these norms whatever rms_norm_eps is, llama.cpp takes
    rms_norm_eps: up to 1e-5 that is below what float32 rounds away.
    """

    biased = ()
    rotates_part = True

    def check(self) -> None:
        super().check()
        self.limit_epsilon(
            _LARGEST_EPSILON,
            "takes it for the norms of the latents too, where transformers has 1e-6",
        )

    def rope(self) -> CheckpointRope:
        rope = super().rope()
        if rope.geometry.n_rot != self.config.integer("qk_rope_head_dim"):
            raise self.refused(
                f"partial_rotary_factor rotates {rope.geometry.n_rot} of the "
                f"{self.config.integer('qk_rope_head_dim')} dimensions of qk_rope_head_dim, which "
                "transformers does "
                "not do; remove it"
            )
        return rope


FAMILY = Llama
