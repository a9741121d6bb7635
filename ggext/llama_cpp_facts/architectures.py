"""What an architecture's loader and graph in llama.cpp take for granted, one row an architecture.

Read from ``load_arch_hparams``, ``load_arch_tensors`` and the graph of ``models/*.cpp``. The
loader holds the shapes to the hyperparameters, with a plain error; the graph asserts, and an
assertion ends the process. So every row is stricter than the loader: shapes are those that the
graph computes with.

A size is a sum of products of the names in `sizes`: ``"heads*key"``, ``"rank+rot"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from ggext.llama_cpp_facts import compressed

Shape = tuple[str, ...]

#: Tensor → its shape, the contiguous dimension first, where a row does not say otherwise. Those of
#: a layer are named without ``blk.N.``, all without ``.weight``. A bias has its matrix's rows.
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "token_embd": ("embd", "vocab"),
        "output": ("embd", "vocab"),
        "output_norm": ("embd",),
        "position_embd": ("embd", "context"),
        "token_embd_norm": ("embd",),
        "rope_freqs": ("half_rot",),
        "rope_factors_long": ("half_rot",),
        "rope_factors_short": ("half_rot",),
        "attn_norm": ("embd",),
        "attn_norm_2": ("embd",),
        "attn_q": ("embd", "heads*key"),
        "attn_k": ("embd", "kv*key"),
        "attn_v": ("embd", "kv*value"),
        "attn_qkv": ("embd", "heads*key+kv*key+kv*value"),
        "attn_output": ("heads*value", "embd"),
        "attn_q_norm": ("key",),
        "attn_k_norm": ("key",),
        "attn_sinks": ("heads",),
        "post_attention_norm": ("embd",),
        "ffn_norm": ("embd",),
        "post_ffw_norm": ("embd",),
        "ffn_gate": ("embd", "ff"),
        "ffn_up": ("embd", "ff"),
        "ffn_down": ("ff", "embd"),
        "ffn_gate_inp": ("embd", "experts"),
        "exp_probs_b": ("experts",),
        "ffn_gate_exps": ("embd", "expert_ff", "experts"),
        "ffn_up_exps": ("embd", "expert_ff", "experts"),
        "ffn_gate_up_exps": ("embd", "expert_ff+expert_ff", "experts"),
        "ffn_down_exps": ("expert_ff", "embd", "experts"),
        "pre_ffw_norm_2": ("embd",),
        "post_ffw_norm_1": ("embd",),
        "post_ffw_norm_2": ("embd",),
        "layer_output_scale": ("one",),
        "per_layer_token_embd": ("each*layers", "vocab"),
        "per_layer_model_proj": ("embd", "each*layers"),
        "per_layer_proj_norm": ("each",),
        "inp_gate": ("embd", "each"),
        "proj": ("each", "embd"),
        "post_norm": ("embd",),
        "ffn_gate_inp_shexp": ("embd",),
        "ffn_gate_shexp": ("embd", "shared_ff"),
        "ffn_up_shexp": ("embd", "shared_ff"),
        "ffn_down_shexp": ("shared_ff", "embd"),
    }
)

_TWO_IN_ONE = {"ffn_up": ("embd", "ff+ff")}
_NORMS_OF_ALL_HEADS = {"attn_q_norm": ("heads*key",), "attn_k_norm": ("kv*key",)}
_NORMS_OF_EACH_HEAD = {"attn_q_norm": ("key", "heads"), "attn_k_norm": ("key", "kv")}
_LATENT = {
    "attn_q": ("embd", "heads*head_key"),
    "attn_q_a": ("embd", "query_rank"),
    "attn_q_a_norm": ("query_rank",),
    "attn_q_b": ("query_rank", "heads*head_key"),
    "attn_kv_a_mqa": ("embd", "rank+rot"),
    "attn_kv_a_norm": ("rank",),
    "attn_k_b": ("nope", "rank", "heads"),
    "attn_v_b": ("rank", "head_value", "heads"),
    "attn_kv_b": ("rank", "heads*nope+heads*head_value"),
    "attn_output": ("heads*head_value", "embd"),
}
_GATED_QUERIES = {
    "attn_q": ("embd", "heads*key+heads*key"),
    "attn_qkv": ("embd", "heads*key+heads*key+kv*key+kv*value"),
}
#: Of the layers that are one; the others' shapes are those of attention.
DELTA_NET: Mapping[str, Shape] = {
    "attn_qkv": ("embd", "channels"),
    "attn_gate": ("embd", "inner"),
    "ssm_in": ("embd", "channels+inner"),
    "ssm_conv1d": ("conv", "channels"),
    "ssm_dt": ("inner_heads",),
    "ssm_a": ("inner_heads",),
    "ssm_beta": ("embd", "inner_heads"),
    "ssm_alpha": ("embd", "inner_heads"),
    "ssm_ba": ("embd", "inner_heads+inner_heads"),
    "ssm_norm": ("state",),
    "ssm_out": ("inner", "embd"),
}
_GATED_OUTPUT = {"attn_gate": ("embd", "heads*key")}
#: Of Mamba 2.
_MAMBA2: Mapping[str, Shape] = {
    "ssm_in": ("embd", "channels+inner+inner_heads"),
    "ssm_conv1d": ("conv", "channels"),
    "ssm_dt": ("inner_heads",),
    "ssm_a": ("one", "inner_heads"),
    "ssm_d": ("one", "inner_heads"),
    "ssm_norm": ("inner_of_group", "groups"),
    "ssm_out": ("inner", "embd"),
}
_CONVOLUTIONS = {
    "shortconv.conv": ("conv", "embd"),
    "shortconv.in_proj": ("embd", "embd+embd+embd"),
    "shortconv.out_proj": ("embd", "embd"),
}


@dataclass(frozen=True)
class ArchitectureFacts:
    """What one architecture's loader and graph want of a file."""

    # how much of a head rotates: all of it (asserted), or an even part
    rotates: Literal["whole", "part"] = "whole"
    # multi-head latent attention; "cached": keys and values may be cached as one latent row
    latent: Literal["no", "cached", "expanded"] = "no"
    # which models have experts
    experts: Literal["never", "some", "all"] = "never"
    # where the rows of an expert's matrices are said: feed_forward_length, or a key of their own;
    # "or_share": the own key, where absent feed_forward_length / experts used
    expert_rows: Literal["ff", "own", "or_share"] = "ff"
    # where the rows of the shared expert are said: a key of their own, where absent none or ff; a
    # number of experts; as one expert
    shared_rows: Literal["own", "or_ff", "counted", "as_expert"] = "own"
    # what expert_gating_func may be; empty: it is not read
    gating: tuple[int, ...] = ()
    # numbers that must be at least 1, in addition to those that all models have
    positive: tuple[str, ...] = ()
    # whether heads, keys and feed-forward parts differ from layer to layer, values may be missing,
    # and later layers may take the keys and values of earlier ones
    by_layer: bool = False
    # whether a value may have another size than a key
    own_values: bool = False
    # whether layers that do not slide rotate half of what the file says
    halves_rotated: bool = False
    # what an indexer chooses to attend to
    indexer: Literal["no", "tokens", "blocks"] = "no"
    # whether the loader asks for neither of a layer's feed-forward parts, plain or of experts
    optional_feed_forward: bool = False
    # whether layers attend to compressed tokens, with one head of keys that are the values too, and
    # the residual is several streams
    compressed: bool = False
    # whether layers without keys and values are convolutions
    convolutions: bool = False
    # whether some layers are a gated delta net; "fused": its first projection may be one tensor
    delta_net: Literal["no", "split", "fused"] = "no"
    # whether some layers are Mamba 2; "doubled": twice as wide as the model, as the loader asserts
    mamba2: Literal["no", "any", "doubled"] = "no"
    # whether it rotates by sections (M-RoPE): those that must not have any, or may, or must
    sections: Literal["no", "may", "must"] = "no"
    # shapes that are not as in SHAPES
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    # shapes that are as good as those
    also: Mapping[str, Shape] = field(default_factory=dict)


_PLAIN = ArchitectureFacts()
_PART = ArchitectureFacts(rotates="part")
_LLAMA = ArchitectureFacts(experts="some")
_DELTA_EXPERTS = ArchitectureFacts(
    rotates="part",
    experts="all",
    expert_rows="or_share",
    shared_rows="or_ff",
    delta_net="split",
    shapes=_GATED_QUERIES,
)
_NEMOTRON_H = ArchitectureFacts(
    rotates="part",
    mamba2="any",
    shapes={
        **_MAMBA2,
        "ffn_latent_down": ("embd", "latent"),
        "ffn_latent_up": ("latent", "embd"),
        "ffn_up_exps": ("latent", "expert_ff", "experts"),
        "ffn_down_exps": ("expert_ff", "latent", "experts"),
    },
)
_DEEPSEEK2 = ArchitectureFacts(
    rotates="part",
    latent="cached",
    experts="some",
    expert_rows="own",
    shared_rows="counted",
    gating=(0, 1, 2, 3, 4),
    shapes=_LATENT,
)

_INDEXED = replace(
    _DEEPSEEK2,
    indexer="tokens",
    shapes=_LATENT
    | {
        "indexer.k_norm": ("index",),
        "indexer.proj": ("embd", "index_heads"),
        "indexer.attn_k": ("embd", "index"),
        "indexer.attn_q_b": ("query_rank", "index_heads*index"),
    },
)

_COMPRESSED = ArchitectureFacts(
    rotates="part",
    experts="all",
    expert_rows="own",
    shared_rows="counted",
    gating=(4,),
    positive=("expert_shared_count", "hyper_connection.sinkhorn_iterations"),
    compressed=True,
    shapes=compressed.SHAPES,
    also=compressed.ALSO,
)

ARCHITECTURES: Mapping[str, ArchitectureFacts] = MappingProxyType(
    {
        "afmoe": ArchitectureFacts(
            rotates="part",
            experts="some",
            expert_rows="own",
            shared_rows="counted",
            gating=(1, 2, 3, 4),
            shapes=_GATED_OUTPUT,
        ),
        "apertus": _PLAIN,
        "arcee": _PLAIN,
        "bloom": _PLAIN,
        "cohere2": _PART,
        "command-r": ArchitectureFacts(rotates="part", shapes=_NORMS_OF_EACH_HEAD),
        "deepseek2": _DEEPSEEK2,
        "deepseek32": _INDEXED,
        "deepseek4": _COMPRESSED,
        "dots1": ArchitectureFacts(
            experts="some",
            expert_rows="own",
            shared_rows="counted",
            gating=(1, 2, 3, 4),
        ),
        "ernie4_5": _PLAIN,
        "ernie4_5-moe": ArchitectureFacts(
            experts="some", expert_rows="own", positive=("interleave_moe_layer_step",)
        ),
        "exaone": _PLAIN,
        "exaone4": _PLAIN,
        "falcon": _PLAIN,
        "falcon-h1": ArchitectureFacts(rotates="part", mamba2="any", shapes=_MAMBA2),
        "gemma": _PART,
        "gemma2": _PART,
        "gemma3": _PART,
        "gemma4": ArchitectureFacts(experts="some", expert_rows="own", by_layer=True),
        "glm-dsa": _INDEXED,
        "glm4": ArchitectureFacts(rotates="part", sections="may", shapes=_TWO_IN_ONE),
        "glm4moe": ArchitectureFacts(
            rotates="part",
            sections="may",
            experts="all",
            expert_rows="or_share",
            shared_rows="counted",
            gating=(0, 1, 2, 3, 4),
        ),
        "gpt-oss": ArchitectureFacts(experts="all", expert_rows="own"),
        "gpt2": _PLAIN,
        "gptneox": _PART,
        "granite": _LLAMA,
        "granitehybrid": ArchitectureFacts(
            experts="some", mamba2="doubled", shapes=_MAMBA2
        ),
        "granitemoe": _LLAMA,
        "hunyuan-dense": _PLAIN,
        "hy_v3": ArchitectureFacts(
            experts="all",
            expert_rows="or_share",
            gating=(0, 1, 2, 3, 4),
            optional_feed_forward=True,
        ),
        "internlm2": _PLAIN,
        "laguna": ArchitectureFacts(
            rotates="part",
            experts="some",
            expert_rows="own",
            gating=(1, 2, 3, 4),
            by_layer=True,
            shapes=_GATED_OUTPUT,
            also={"attn_gate": ("embd", "heads")},
        ),
        "lfm2": ArchitectureFacts(
            rotates="part", convolutions=True, shapes=_CONVOLUTIONS
        ),
        "lfm2moe": ArchitectureFacts(
            rotates="part",
            convolutions=True,
            experts="all",
            expert_rows="own",
            gating=(1, 2, 3, 4),
            shapes=_CONVOLUTIONS,
        ),
        "llama": _LLAMA,
        "llama4": ArchitectureFacts(
            experts="all", expert_rows="own", shared_rows="as_expert"
        ),
        "mimo2": ArchitectureFacts(
            rotates="part",
            experts="some",
            expert_rows="own",
            by_layer=True,
            own_values=True,
        ),
        "minicpm3": ArchitectureFacts(
            rotates="part", latent="expanded", shapes=_LATENT
        ),
        "minimax-m2": ArchitectureFacts(
            rotates="part",
            experts="all",
            gating=(1, 2, 3, 4),
            shapes=_NORMS_OF_ALL_HEADS,
        ),
        "minimax-m3": ArchitectureFacts(
            rotates="part",
            experts="all",
            expert_rows="own",
            shared_rows="counted",
            gating=(1, 2, 3, 4),
            indexer="blocks",
            shapes={
                "indexer.q_proj": ("embd", "index_heads*index"),
                "indexer.k_proj": ("embd", "index"),
                "indexer.q_norm": ("index",),
                "indexer.k_norm": ("index",),
            },
        ),
        "mistral3": _LLAMA,
        "mistral4": _DEEPSEEK2,
        "mpt": _PLAIN,
        "muse-glimmer": ArchitectureFacts(rotates="part", shapes=_GATED_OUTPUT),
        "nemotron": _PART,
        "nemotron_h": _NEMOTRON_H,
        "nemotron_h_moe": replace(
            _NEMOTRON_H, experts="all", expert_rows="own", shared_rows="own"
        ),
        "olmo": _PLAIN,
        "olmo2": ArchitectureFacts(shapes=_NORMS_OF_ALL_HEADS),
        "olmoe": ArchitectureFacts(experts="all", shapes=_NORMS_OF_ALL_HEADS),
        "phi2": _PART,
        "phi3": ArchitectureFacts(rotates="part", shapes=_TWO_IN_ONE),
        "qwen2": _PLAIN,
        "qwen2moe": ArchitectureFacts(
            experts="all", expert_rows="or_share", shared_rows="or_ff"
        ),
        "qwen2vl": ArchitectureFacts(sections="must"),
        "qwen3": _PLAIN,
        "qwen3moe": ArchitectureFacts(experts="all", expert_rows="or_share"),
        "qwen3next": replace(_DELTA_EXPERTS, delta_net="fused"),
        "qwen35": ArchitectureFacts(
            rotates="part", delta_net="split", sections="must", shapes=_GATED_QUERIES
        ),
        "qwen35moe": replace(_DELTA_EXPERTS, sections="must"),
        "qwen3vl": ArchitectureFacts(sections="must"),
        "qwen3vlmoe": ArchitectureFacts(
            experts="all", expert_rows="or_share", sections="must"
        ),
        "seed_oss": _PLAIN,
        "smollm3": _PLAIN,
        "stablelm": ArchitectureFacts(rotates="part", shapes=_NORMS_OF_EACH_HEAD),
        "starcoder": _PLAIN,
        "starcoder2": _PLAIN,
        "step35": ArchitectureFacts(
            rotates="part",
            experts="some",
            expert_rows="own",
            gating=(0, 1, 2, 3, 4),
            by_layer=True,
            halves_rotated=True,
            shapes={
                "attn_gate": ("embd", "heads"),
                "rope_freqs": ("most_half_rot",),
                "rope_factors_long": ("most_half_rot",),
                "rope_factors_short": ("most_half_rot",),
            },
        ),
    }
)
