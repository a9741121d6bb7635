"""Gemma 4: Gemma 3's norms, whose weights the file has as they are, and its windows, with heads of
another size where the whole text is attended to, of which a quarter of the pairs turns; values may
be the keys; later layers may take the keys and values of earlier ones; experts may stand next to
the feed-forward part, and each layer may get an embedding of its own. Of a model that sees or hears
too, the text part.

ggml looks GELU up in a table of float16 (`gemma2.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ggext.converters.base import TensorRule, text_part_name, weight
from ggext.converters.llama import Llama

from ggext.checkpoint.config import Config
from ggext.rope.config_reader import CheckpointRope
from ggext.rope.families import FULL, SLIDING

_PERIOD = 6


class Gemma4(Llama):
    """``slides``: which layers see a window. ``heads_of``: keys' heads and their size in a layer.
    ``n_own``: the layers that have keys and values of their own, which are the first ones."""

    arch = "gemma4"
    defaults = {
        "head_dim": 256,
        "global_head_dim": 512,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_kv_shared_layers": 0,
        "max_position_embeddings": 131072,
        "model_type": "gemma4_text",
    }
    activations = ("gelu_pytorch_tanh",)
    biased = ()
    tied_as_part = True
    merges_by_rank = True

    def check(self) -> None:
        number = self.config.integer
        why = f"llama.cpp's architecture {self.arch}"
        self.require(
            "hidden_activation", self.activations, f"{why} uses {self.activations[0]}"
        )
        self.require(
            "use_bidirectional_attention",
            (False, "vision"),
            f"{why} attends to what was before",
        )
        self.slides = self._sliding_layers()
        self.n_own = self.n_layers - number("num_kv_shared_layers", minimum=0)
        self.n_per_layer = number("hidden_size_per_layer_input", minimum=0, default=0)
        if self.n_per_layer:
            self.require(
                "vocab_size_per_layer_input",
                self.vocab_size,
                f"{why} has as many embeddings of layers as tokens, {self.vocab_size}",
            )
        self.has_experts = self.config.flag("enable_moe_block")
        if self.has_experts:
            self.n_experts = number("num_experts")
            self.n_expert_ff = number("moe_intermediate_size")
        self._check_shared(why)
        self._check_heads(why)

    def _sliding_layers(self) -> list[bool]:
        usual = [(i + 1) % _PERIOD != 0 for i in range(self.n_layers)]
        # as transformers has the last
        return [*self.sliding_layers(usual)[:-1], False]

    def _check_shared(self, why: str) -> None:
        """llama.cpp takes what is shared from the last layer that has its own, or, where the layer
        slides, from the one before that."""
        own = self.slides[: self.n_own]
        last = {slides: i for i, slides in enumerate(own)}
        taken = {False: self.n_own - 1, True: self.n_own - 2}
        if self.n_own < 2 or any(
            last.get(slides) != taken[slides]
            for slides in set(self.slides[self.n_own :])
        ):
            raise self.refused(
                f"num_kv_shared_layers is {self.n_layers - self.n_own}; "
                f"{why} needs two layers or more before those, the last of them one of {FULL} and "
                f"the one before it one of {SLIDING}"
            )

    def heads_of(self, layer: int) -> tuple[int, int]:
        if self.slides[layer]:
            return self.n_kv_heads, self.head_dim
        own = self._layer_config(layer)  # as transformers saves what differs
        usual = self.n_kv_heads
        if self.config.flag("attention_k_eq_v"):
            usual = self.config.integer("num_global_key_value_heads", default=usual)
        heads = own.integer("num_key_value_heads", default=usual)
        size = own.integer("head_dim", default=self.config.integer("global_head_dim"))
        if self.n_heads % heads:
            raise self.refused(
                f"num_attention_heads {self.n_heads} is not a multiple of "
                f"the {heads} heads of keys of a layer of {FULL}"
            )
        return heads, size

    def _layer_config(self, layer: int) -> Config:
        given = self.config.section("per_layer_config").get(str(layer), {})
        if not isinstance(given, dict):
            raise self.refused("per_layer_config is not of objects")
        return Config(given, self.config.source)

    def _check_heads(self, why: str) -> None:
        # As a stranger's file has them: of any type.
        whole: set[tuple[Any, Any]] = {
            self.heads_of(i) for i in range(self.n_layers) if not self.slides[i]
        }
        if len(whole) > 1:
            raise self.refused(
                f"per_layer_config gives layers of {FULL} heads of several "
                f"sizes or numbers; {why} has one"
            )
        _, self.n_whole = whole.pop()

    def rope(self) -> CheckpointRope:
        values = {**self.config.values, "global_head_dim": self.n_whole}
        self.config = replace(self.config, values=values)
        return super(Llama, self).rope()

    def metadata(self) -> dict[str, Any]:
        sizes = [self.heads_of(i) for i in range(self.n_layers)]
        values: dict[str, Any] = {
            "attention.head_count_kv": [heads for heads, _ in sizes],
            "attention.key_length": self.n_whole,
            "attention.value_length": self.n_whole,
            "attention.key_length_swa": self.head_dim,
            "attention.value_length_swa": self.head_dim,
            "attention.sliding_window": self.config.integer("sliding_window"),
            "attention.sliding_window_pattern": self.slides,
            "attention.shared_kv_layers": self.n_layers - self.n_own,
            "embedding_length_per_layer_input": self.n_per_layer,
            "feed_forward_length": [self._n_ff(i) for i in range(self.n_layers)],
        }
        # absent, llama.cpp caps at 30; 0 caps nothing
        cap = self.config.number("final_logit_softcapping", default=None)
        values["final_logit_softcapping"] = cap or 0.0
        if self.has_experts:
            values |= {
                "expert_count": self.n_experts,
                "expert_used_count": self.config.integer("top_k_experts"),
                "expert_feed_forward_length": self.n_expert_ff,
            }
        return super().metadata() | values

    def _n_ff(self, layer: int) -> int:
        doubled = self.config.flag("use_double_wide_mlp") and layer >= self.n_own
        return 2 * self.n_ff if doubled else self.n_ff

    def stored_name(self, name: str) -> str:
        return text_part_name(name)

    def tensors(self) -> Iterator[TensorRule]:
        yield weight(self.embedding, self.vocab_size, self.n_embd)
        yield from self.norm(self.final_norm)
        yield from self.output()
        if self.n_per_layer:
            yield from self._embeddings_of_layers()
        for i in range(self.n_layers):
            block = f"model.layers.{i}"
            yield from self.norms(block)
            yield from self._attention_of(f"{block}.self_attn", i)
            yield from self._feed_forward_of(block, i)
            yield TensorRule(
                (f"{block}.layer_scalar",),
                (1,),
                f"blk.{i}.layer_output_scale.weight",
                optional=True,
            )
            if self.has_experts:
                yield from self._experts_of(block, i)
            if self.n_per_layer:
                yield weight(
                    f"{block}.per_layer_input_gate", self.n_per_layer, self.n_embd
                )
                yield weight(
                    f"{block}.per_layer_projection", self.n_embd, self.n_per_layer
                )
                yield weight(f"{block}.post_per_layer_input_norm", self.n_embd)

    def _embeddings_of_layers(self) -> Iterator[TensorRule]:
        total = self.n_layers * self.n_per_layer
        yield weight("model.embed_tokens_per_layer", self.vocab_size, total)
        yield weight("model.per_layer_model_projection", total, self.n_embd)
        yield weight("model.per_layer_projection_norm", self.n_per_layer)

    def norms(self, block: str) -> Iterator[TensorRule]:
        yield from super().norms(block)
        yield from self.norm(f"{block}.pre_feedforward_layernorm")
        yield from self.norm(f"{block}.post_feedforward_layernorm")

    def _attention_of(self, module: str, layer: int) -> Iterator[TensorRule]:
        kv_heads, head = self.heads_of(layer)
        rows = self.n_heads * head
        yield from self.project(module, "q_proj", rows, self.n_embd)
        yield weight(f"{module}.q_norm", head)
        yield from self.project(module, "o_proj", self.n_embd, rows)
        if layer >= self.n_own:
            for name in ("k_proj", "v_proj", "k_norm"):
                shape = (head,) if name == "k_norm" else (kv_heads * head, self.n_embd)
                yield weight(
                    f"{module}.{name}",
                    *shape,
                    optional=True,
                    unless="an earlier layer's are taken",
                )
            return
        yield from self.project(module, "k_proj", kv_heads * head, self.n_embd)
        yield weight(f"{module}.k_norm", head)
        if self.slides[layer] or not self.config.flag("attention_k_eq_v"):
            yield from self.project(module, "v_proj", kv_heads * head, self.n_embd)

    def _feed_forward_of(self, block: str, layer: int) -> Iterator[TensorRule]:
        n_ff = self._n_ff(layer)
        yield from self.project(f"{block}.mlp", "gate_proj", n_ff, self.n_embd)
        yield from self.project(f"{block}.mlp", "up_proj", n_ff, self.n_embd)
        yield from self.project(f"{block}.mlp", "down_proj", self.n_embd, n_ff)

    def _experts_of(self, block: str, layer: int) -> Iterator[TensorRule]:
        count = self.n_experts
        n_ff = self.n_expert_ff
        at = f"blk.{layer}"
        yield weight(f"{block}.router.proj", count, self.n_embd)
        yield TensorRule(
            (f"{block}.router.scale",), (self.n_embd,), f"{at}.ffn_gate_inp.scale"
        )
        yield TensorRule(
            (f"{block}.router.per_expert_scale",), (count,), f"{at}.ffn_down_exps.scale"
        )
        for name, shape in (
            ("gate_up", (count, 2 * n_ff, self.n_embd)),
            ("down", (count, self.n_embd, n_ff)),
        ):
            target = f"{at}.ffn_{name}_exps.weight"
            yield TensorRule((f"{block}.experts.{name}_proj",), shape, target)
        yield from self.norm(f"{block}.pre_feedforward_layernorm_2")
        yield from self.norm(f"{block}.post_feedforward_layernorm_1")
        yield from self.norm(f"{block}.post_feedforward_layernorm_2")


FAMILY = Gemma4
