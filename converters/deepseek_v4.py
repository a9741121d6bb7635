"""DeepSeek 4: a window and compressed tokens, all of them or those that an indexer chooses; one
head of keys that are the values too; several residual streams; experts that the first layers take
by the token's number.

llama.cpp runs models with layers of both compressed kinds alone. Experts in MXFP4 stay so, and
llama.cpp then rounds what goes into them to 8 bits: a mean KL of 4e-4 in the tests' tiny model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ggext.converters.base import (
    TensorRule,
    correction,
    experts,
    names_each,
    weight,
)
from ggext.converters.llama import WITHOUT_OUTPUT, Llama

from ggext.checkpoint.files import quote
from ggext.llama_cpp_facts.compressed import ALL, CHOSEN

_SQRT_SOFTPLUS = 4  # LLAMA_EXPERT_GATING_FUNC_TYPE
_STREAMS = 4
_SLIDES, _CHOSEN, _ALL = (
    f"{kind}_attention"
    for kind in ("sliding", "compressed_sparse", "heavily_compressed")
)
_RATIOS = {_SLIDES: 0, _CHOSEN: CHOSEN, _ALL: ALL}
_BY_TOKEN, _BY_SCORE = "hash_moe", "moe"
_NOT_SCORED = "its layer takes experts by the token's number, and chooses none"
#: What transformers calls a tensor, in memory or in what it saves, a part of its name → the
#: published part; in this order.
_NAMES = (
    ("embed_tokens.", "embed."),
    ("lm_head.", "head."),
    ("hc_head.hc_", "hc_head_"),
    (".self_attn.", ".attn."),
    (".mlp.", ".ffn."),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("attn_hc.", "hc_attn_"),
    ("ffn_hc.", "hc_ffn_"),
    (".sinks", ".attn_sink"),
    (".compressor.indexer.scorer.", ".indexer."),
    (".compressor.indexer.q_b_proj", ".indexer.wq_b"),
    (".compressor.indexer.", ".indexer.compressor."),
    ("compressor.kv_norm", "compressor.norm"),
    (".attn.norm.", ".attn.kv_norm."),
    ("compressor.gate_proj", "compressor.wgate"),
    ("position_bias", "ape"),
    (".q_a_norm", ".q_norm"),
    (".q_a_proj", ".wq_a"),
    (".q_b_proj", ".wq_b"),
    (".kv_proj", ".wkv"),
    (".o_a_proj", ".wo_a"),
    (".o_b_proj", ".wo_b"),
    (".e_score_correction_bias", ".bias"),
    ("shared_experts.gate_proj", "shared_experts.w1"),
    ("shared_experts.down_proj", "shared_experts.w2"),
    ("shared_experts.up_proj", "shared_experts.w3"),
)


class DeepseekV4(Llama):
    """``ratios``: of each layer, how many tokens become one, 0 where none do."""

    arch = "deepseek4"
    defaults = {
        "rms_norm_eps": 1e-6,
        "vocab_size": 129280,
        "hidden_size": 4096,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 43,
        "num_attention_heads": 64,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "q_lora_rank": 1024,
        "n_routed_experts": 256,
        "num_experts_per_tok": 6,
        "routed_scaling_factor": 1.5,
        "hc_mult": _STREAMS,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "swiglu_limit": 10.0,
        "sliding_window": 128,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 512,
    }
    attribute_map = {"n_routed_experts": "num_local_experts"}
    biased = ()
    rotates_part = True
    needs_output = True
    embedding = "embed"
    head = "head"
    final_norm = "norm"

    def check(self) -> None:
        super().check()
        number = self.config.integer
        self.q_rank = number("q_lora_rank")
        self.n_groups = number("o_groups")
        self.o_rank = number("o_lora_rank")
        self.n_experts = number("n_routed_experts")
        self.n_used = number("num_experts_per_tok")
        self.n_index = number("index_n_heads")
        self.index_dim = number("index_head_dim", minimum=64)
        self.ratios = self._read_ratios()
        self.n_by_token = self._read_layers_by_token()
        self._check_what_is_fixed()

    def _check_what_is_fixed(self) -> None:
        why = f"llama.cpp's architecture {self.arch}"
        for name, value in (
            ("hc_mult", _STREAMS),
            ("num_key_value_heads", 1),
            ("n_shared_experts", 1),
            ("scoring_func", "sqrtsoftplus"),
            ("norm_topk_prob", True),
        ):
            self.require(name, value, f"{why} runs {value!r}")
        rates = self.config.section("compress_rates")
        rates = {_CHOSEN: self.config.values.get("compress_rate_csa")} | rates
        rates = {_ALL: self.config.values.get("compress_rate_hca")} | rates
        for kind, rate in rates.items():
            if kind not in _RATIOS:
                raise self.refused(
                    f"compress_rates has {quote(kind)}; known: {', '.join(_RATIOS)}"
                )
            if rate is not None and rate != _RATIOS[kind]:
                raise self.refused(
                    f"{kind} compresses {rate!r:.20} tokens; {why} compresses {_RATIOS[kind]}"
                )
        if self.index_dim & (self.index_dim - 1):
            raise self.refused(
                f"index_head_dim is {self.index_dim}; {why} has a power of two"
            )
        if self.n_heads % self.n_groups:
            raise self.refused(
                f"num_attention_heads {self.n_heads} is not a multiple of o_groups "
                f"{self.n_groups}"
            )
        if self.config.number("swiglu_limit") <= 1e-6:
            raise self.refused(
                f"swiglu_limit is {self.config.values['swiglu_limit']}; {why} limits nothing "
                "then, and transformers cuts everything off"
            )

    def read_n_ff(self, config: Any) -> int:
        return int(config.integer("moe_intermediate_size"))

    def _read_ratios(self) -> list[int]:
        """As transformers' class makes the kinds of layers."""
        kinds = self.config.values.get("layer_types")
        given = self.config.values.get("compress_ratios")
        known = {ratio: kind for kind, ratio in _RATIOS.items()}
        if kinds is None and isinstance(given, list):
            ratios = [ratio if isinstance(ratio, int) else -1 for ratio in given]
            kinds = [known.get(ratio) for ratio in ratios[: self.n_layers]]
        if kinds is None:
            later = [_CHOSEN if i % 2 else _ALL for i in range(self.n_layers)]
            kinds = ([_ALL] * 2 + later)[: self.n_layers]
        if not names_each(kinds, self.n_layers, tuple(_RATIOS)):
            raise self.refused(
                f"layer_types must name {', '.join(_RATIOS)} for each of {self.n_layers} layers"
            )
        for kind in (_CHOSEN, _ALL):
            if kind not in kinds:
                raise self.refused(
                    f"layer_types names no layer of {kind}, and llama.cpp divides by zero in a "
                    "model without one"
                )
        return [_RATIOS[kind] for kind in kinds]

    def _read_layers_by_token(self) -> int:
        """How many of the first layers take experts by the token's number."""
        kinds = self.config.values.get("mlp_layer_types")
        if kinds is None:
            count = self.config.integer("num_hash_layers", default=3, minimum=0)
            return int(min(count, self.n_layers))
        count = kinds.count(_BY_TOKEN) if isinstance(kinds, list) else 0
        regular = [_BY_TOKEN] * count + [_BY_SCORE] * (self.n_layers - count)
        if kinds != regular:
            raise self.refused(
                f"mlp_layer_types is {kinds!r:.80}; llama.cpp's architecture {self.arch} has "
                f"layers of {_BY_TOKEN} first and {self.n_layers} in all"
            )
        return count

    def metadata(self) -> dict[str, Any]:
        number = self.config.integer
        limits = [self.config.number("swiglu_limit")] * self.n_layers
        return super().metadata() | {
            "attention.q_lora_rank": self.q_rank,
            "attention.sliding_window": number("sliding_window"),
            "attention.compress_ratios": self.ratios,
            "attention.output_group_count": self.n_groups,
            "attention.output_lora_rank": self.o_rank,
            "attention.indexer.head_count": self.n_index,
            "attention.indexer.key_length": self.index_dim,
            "attention.indexer.top_k": number("index_topk"),
            "hyper_connection.count": _STREAMS,
            "hyper_connection.sinkhorn_iterations": number("hc_sinkhorn_iters"),
            "hyper_connection.epsilon": self.config.number("hc_eps"),
            "hash_layer_count": self.n_by_token,
            "expert_count": self.n_experts,
            "expert_used_count": self.n_used,
            "expert_feed_forward_length": self.n_ff,
            "expert_shared_count": 1,
            "expert_weights_scale": self.config.number("routed_scaling_factor"),
            "expert_weights_norm": True,
            "expert_gating_func": _SQRT_SOFTPLUS,
            "swiglu_clamp_exp": limits,
            "swiglu_clamp_shexp": limits,
        }

    def stored_name(self, name: str) -> str:
        """Published names, of what transformers calls otherwise in memory or in what it saves."""
        name = name.removeprefix("model.")
        for theirs, published in _NAMES:
            name = name.replace(theirs, published)
        return name

    def tensors(self) -> Iterator[TensorRule]:
        yield self._matrix("embed", "token_embd", self.vocab_size, self.n_embd)
        yield self._matrix("norm", "output_norm", self.n_embd)
        source = "embed" if self.is_tied else "head"
        yield self._matrix(
            source, "output", self.vocab_size, self.n_embd, hint=WITHOUT_OUTPUT
        )
        wide = _STREAMS * self.n_embd
        yield _vector("hc_head_fn", "output_hc_fn", _STREAMS, wide)
        yield _vector("hc_head_base", "output_hc_base", _STREAMS)
        yield _vector("hc_head_scale", "output_hc_scale", 1)
        for layer in range(self.n_layers):
            source, target = f"layers.{layer}", f"blk.{layer}"
            yield from self._streams(source, target)
            for name in ("attn_norm", "ffn_norm"):
                yield self._matrix(f"{source}.{name}", f"{target}.{name}", self.n_embd)
            yield from self._attention(f"{source}.attn", target)
            yield from self._compressor(f"{source}.attn", target, self.ratios[layer])
            yield from self._experts(f"{source}.ffn", layer)

    def _matrix(
        self, source: str, target: str, *shape: int, **transforms: Any
    ) -> TensorRule:
        return weight(source, *shape, target=f"{target}.weight", **transforms)

    def _streams(self, source: str, target: str) -> Iterator[TensorRule]:
        """What mixes the residual streams before and after each half of a layer."""
        mixed = (2 + _STREAMS) * _STREAMS
        for part in ("attn", "ffn"):
            name = f"hc_{part}"
            shapes = {
                "fn": (mixed, _STREAMS * self.n_embd),
                "base": (mixed,),
                "scale": (3,),
            }
            for end, shape in shapes.items():
                yield _vector(
                    f"{source}.{name}_{end}", f"{target}.{name}_{end}", *shape
                )

    def _attention(self, source: str, target: str) -> Iterator[TensorRule]:
        rows = self.n_heads * self.head_dim
        latents = self.n_groups * self.o_rank
        for name, written, shape in (
            ("wq_a", "attn_q_a", (self.q_rank, self.n_embd)),
            ("q_norm", "attn_q_a_norm", (self.q_rank,)),
            ("wq_b", "attn_q_b", (rows, self.q_rank)),
            ("wkv", "attn_kv", (self.head_dim, self.n_embd)),
            ("kv_norm", "attn_kv_a_norm", (self.head_dim,)),
            ("wo_a", "attn_output_a", (latents, rows // self.n_groups)),
            ("wo_b", "attn_output_b", (self.n_embd, latents)),
        ):
            yield self._matrix(f"{source}.{name}", f"{target}.{written}", *shape)
        yield _vector(f"{source}.attn_sink", f"{target}.attn_sinks", self.n_heads)

    def _compressor(self, source: str, target: str, ratio: int) -> Iterator[TensorRule]:
        if not ratio:
            return
        yield from self._compressed(
            f"{source}.compressor", f"{target}.attn_compressor", self.head_dim, ratio
        )
        if ratio != _RATIOS[_CHOSEN]:
            return
        indexer = f"{source}.indexer"
        rows = self.n_index * self.index_dim
        yield self._matrix(
            f"{indexer}.wq_b", f"{target}.indexer.attn_q_b", rows, self.q_rank
        )
        yield self._matrix(
            f"{indexer}.weights_proj",
            f"{target}.indexer.proj",
            self.n_index,
            self.n_embd,
        )
        yield from self._compressed(
            f"{indexer}.compressor",
            f"{target}.indexer_compressor",
            self.index_dim,
            ratio,
        )

    def _compressed(
        self, source: str, target: str, size: int, ratio: int
    ) -> Iterator[TensorRule]:
        """What makes one key of ``ratio`` tokens; a chosen one overlaps the one before it, and so
        has two halves."""
        rows = 2 * size if ratio == _RATIOS[_CHOSEN] else size
        yield self._matrix(f"{source}.wkv", f"{target}_kv", rows, self.n_embd)
        yield self._matrix(f"{source}.wgate", f"{target}_gate", rows, self.n_embd)
        yield _vector(f"{source}.ape", f"{target}_ape", ratio, rows)
        yield self._matrix(f"{source}.norm", f"{target}_norm", size)

    def _experts(self, source: str, layer: int) -> Iterator[TensorRule]:
        target = f"blk.{layer}.ffn"
        count, n_ff, n_embd = self.n_experts, self.n_ff, self.n_embd
        yield self._matrix(f"{source}.gate", f"{target}_gate_inp", count, n_embd)
        bias = correction(f"{source}.gate.bias", count, layer)
        if layer < self.n_by_token:
            yield replace(bias, optional=True, unless=_NOT_SCORED)
            yield TensorRule(
                (f"{source}.gate.tid2eid",),
                (self.vocab_size, self.n_used),
                f"{target}_gate_tid2eid.weight",
                below=count,
            )
        else:
            yield bias
        names = "w1 w3 w2"
        for rule in experts(
            source, count, n_embd, n_ff, names, f"{target}_{{}}_exps.weight"
        ):
            yield replace(rule, instead=_packed(rule))
        shared = f"{source}.shared_experts"
        yield self._matrix(f"{shared}.w1", f"{target}_gate_shexp", n_ff, n_embd)
        yield self._matrix(f"{shared}.w3", f"{target}_up_shexp", n_ff, n_embd)
        yield self._matrix(f"{shared}.w2", f"{target}_down_shexp", n_embd, n_ff)


def _vector(source: str, target: str, *shape: int) -> TensorRule:
    """A parameter that is no module's weight."""
    return TensorRule((source,), shape, f"{target}.weight")


def _packed(rule: TensorRule) -> TensorRule:
    """The form of stacked experts, ``rule``, that are MXFP4: two values a byte, and 32 of them to
    one exponent. Its own other form follows."""
    rows, columns = rule.shape
    return TensorRule(
        rule.sources,
        (rows, columns // 2),
        rule.target,
        written=(len(rule.sources), rows, columns),
        scales=tuple(name.removesuffix("weight") + "scale" for name in rule.sources),
        instead=rule.instead,
    )


FAMILY = DeepseekV4
