"""How a family's ``config.json`` says about RoPE what others say differently.

Read from transformers 5.23 (the configuration and rotary classes of each ``model_type``); what is
not listed here is the general rule of ``ggext.rope.config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FULL, SLIDING, ALL = "full_attention", "sliding_attention", "all"
_COMPRESSED = {FULL: "compress", SLIDING: "main"}
#: By ``model_type`` and by llama.cpp's architecture, what transformers calls the kinds of layers in
#: the rope parameters, where that is not their name.
KIND_NAMES: Mapping[str, Mapping[str, str]] = {
    "deepseek_v4": _COMPRESSED,
    "deepseek4": _COMPRESSED,
}

#: Model types of more than text, whose classes have a ``text_config``.
_COMPOSITE = frozenset(
    "gemma3 gemma4 glm4v glm4v_moe kimi_k25 llama4 minimax_m3_vl mistral3 muse_glimmer "
    "qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe step3p7".split()
)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What of a ``config.json`` concerns text where the model is more than that, ``None`` where the
    whole file does.

    Only the classes of composite models read ``text_config``; in the file of a plain one it is a
    stray key. A type that is not known is a composite where its own sizes are not there.
    """
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return None
    if (
        config.get("model_type") in _COMPOSITE
        or config.get("num_attention_heads") is None
    ):
        return text
    return None


@dataclass(frozen=True)
class FamilyRule:
    """How transformers' class of one family reads the RoPE side of a `config.json`."""

    # What the class fills in where the file is silent.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # Layer kind → key of its head size, tried before `head_dim`.
    head_dim_keys: Mapping[str, str] = field(default_factory=dict)
    # Layer kind → key of its base, outside the rope parameters.
    base_keys: Mapping[str, str] = field(default_factory=dict)
    # Layer kind → its base where none is given.
    base_defaults: Mapping[str, float] = field(default_factory=dict)
    # The kind of layer that rope parameters without a kind concern; the other kind is not scaled.
    scaled_kind: str = ""
    # Kinds of layers without RoPE, where the file has a sliding window.
    unrotated: tuple[str, ...] = ()
    # Key of the rotated share of a head, outside the rope parameters.
    partial_key: str = "partial_rotary_factor"
    # Rope keys that change nothing while they have one of these values.
    inert: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    # Those of them that do not concern the table.
    beside: tuple[str, ...] = ()
    # Whether a `dynamic` with `alpha` is a fixed NTK-aware table.
    static_alpha: bool = False
    # Whether max_position_embeddings is the extended context already.
    final_maximum: bool = False
    # Rope types that the class takes for others.
    read_types: Mapping[str, str] = field(default_factory=dict)
    # Rope parameters of a file that has none.
    default_parameters: Mapping[str, Any] = field(default_factory=dict)
    # What those are, in words.
    default_said: str = ""
    # The family whose code this one copies, where transformers does not know it.
    read_as: str = ""
    # The share of a head that rotates where the parameters say neither it nor a scaling.
    plain_share: float | None = None
    # Key of how many dimensions of a head rotate, in place of a share.
    rotated_key: str = ""
    # Keys that add to the size of which ``partial_rotary_factor`` is a share, where ``head_dim``
    # does not say it and it is not the rotated part's.
    share_of: tuple[str, ...] = ()
    # Sliding-window layers have heads of another size, all of which rotates.
    own_heads: bool = False
    # Sliding-window layers may rotate another share of their heads.
    own_share: bool = False
    # Parameters by layer kind are read, and nothing outside of them.
    nested_only: bool = False
    # M-RoPE's sections where none are given: pairs that turn by time, height and width.
    sections: tuple[int, ...] | None = None


#: Of Ministral 3 and Mistral 4: the first makes queries longer with their position, which is no
#: RoPE table; the second repeats the outer one.
_GROWING_QUERIES = ("llama_4_scaling_beta", "max_position_embeddings")
_GROWING_YARN = {
    "rope_type": "yarn",
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_LATENT = FamilyRule(
    head_dim_keys={ALL: "qk_rope_head_dim"}, defaults={"qk_rope_head_dim": 64}
)
_HUNYUAN = FamilyRule(
    static_alpha=True,
    final_maximum=True,
    inert={
        "factor": (1, 1.0),
        "mscale": (0, 1),
        "mscale_all_dim": (0, 1),
        "beta_fast": (32,),
        "beta_slow": (1,),
    },
)
_GEMMA3 = FamilyRule(
    defaults={"head_dim": 256, "max_position_embeddings": 131072},
    base_keys={FULL: "rope_theta", SLIDING: "rope_local_base_freq"},
    base_defaults={FULL: 1e6, SLIDING: 1e4},
    scaled_kind=FULL,
    final_maximum=True,
)

FAMILY_RULES: Mapping[str, FamilyRule] = {
    "afmoe": FamilyRule(
        unrotated=(FULL,),
        defaults={
            "head_dim": 128,
            "sliding_window": 1024,
            "max_position_embeddings": 16384,
        },
    ),
    "apertus": FamilyRule(
        base_defaults={ALL: 1.2e7},
        default_said="Llama 3's scaling by 8 is taken",
        default_parameters={
            "rope_type": "llama3",
            "rope_theta": 1.2e7,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "cohere": FamilyRule(base_defaults={ALL: 5e5}),
    "cohere2": FamilyRule(unrotated=(FULL,), defaults={"sliding_window": 4096}),
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "deepseek_v4": FamilyRule(
        defaults={"head_dim": 512, "max_position_embeddings": 1048576},
        scaled_kind=FULL,
    ),
    "glm_moe_dsa": _LATENT,
    "glm4_moe_lite": _LATENT,
    "kimi_k2": FamilyRule(
        head_dim_keys=_LATENT.head_dim_keys,
        defaults=_LATENT.defaults,
        read_as="deepseek_v3",
    ),
    "ernie4_5": FamilyRule(defaults={"head_dim": 128}, base_defaults={ALL: 5e5}),
    "ernie4_5_moe": FamilyRule(base_defaults={ALL: 5e5}),
    "exaone": FamilyRule(read_as="llama"),
    "exaone4": FamilyRule(unrotated=(FULL,)),
    "gemma": FamilyRule(defaults={"head_dim": 256}),
    "gemma3_text": _GEMMA3,
    "gemma4_text": FamilyRule(
        defaults={
            "head_dim": 256,
            "global_head_dim": 512,
            "max_position_embeddings": 131072,
        },
        head_dim_keys={FULL: "global_head_dim"},
        scaled_kind=FULL,
        own_heads=True,
        default_parameters={
            FULL: {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1e6,
            },
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
        default_said="a quarter of the pairs turn where the whole text is attended to",
    ),
    "falcon": FamilyRule(defaults={"max_position_embeddings": 2048}),
    "glm4": FamilyRule(defaults={"partial_rotary_factor": 0.5, "head_dim": 128}),
    "glm4_moe": FamilyRule(defaults={"partial_rotary_factor": 0.5}),
    "glm4v_text": FamilyRule(sections=(8, 12, 12)),
    "glm4v_moe_text": FamilyRule(
        defaults={"partial_rotary_factor": 0.5}, sections=(8, 12, 12)
    ),
    "gpt_neox": FamilyRule(
        defaults={"rotary_pct": 0.25},
        partial_key="rotary_pct",
        base_keys={ALL: "rotary_emb_base"},
    ),
    "gpt_oss": FamilyRule(
        base_defaults={ALL: 150000.0},
        default_said="YaRN by 32 is taken",
        default_parameters={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    ),
    "hunyuan_v1_dense": _HUNYUAN,
    "hunyuan_v1_moe": _HUNYUAN,
    "hy_v3": FamilyRule(defaults={"head_dim": 128}, base_defaults={ALL: 11158840.0}),
    "internlm2": FamilyRule(read_as="llama"),
    "minicpm": FamilyRule(read_as="llama"),
    "minicpm3": FamilyRule(
        head_dim_keys=_LATENT.head_dim_keys, defaults={"qk_rope_head_dim": 32}
    ),
    "internlm3": FamilyRule(defaults={"head_dim": 128}),
    "lfm2": FamilyRule(base_defaults={ALL: 1e6}),
    "lfm2_moe": FamilyRule(base_defaults={ALL: 1e6}),
    "laguna": FamilyRule(
        defaults={"head_dim": 128, "max_position_embeddings": 131072},
        scaled_kind=FULL,
        own_share=True,
        nested_only=True,
        default_parameters={
            FULL: {
                "rope_type": "default",
                "partial_rotary_factor": 0.5,
                "rope_theta": 5e5,
            },
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
        default_said="half of each head turns where the whole text is attended to",
    ),
    "minimax_m2": FamilyRule(
        defaults={"head_dim": 128}, base_defaults={ALL: 5e6}, rotated_key="rotary_dim"
    ),
    "minimax_m3_vl_text": FamilyRule(
        defaults={"head_dim": 128, "max_position_embeddings": 524288},
        base_defaults={ALL: 5e6},
    ),
    "mimo_v2_flash": FamilyRule(
        defaults={"head_dim": 192, "max_position_embeddings": 131072},
        scaled_kind=FULL,
        nested_only=True,
        plain_share=0.334,
        default_parameters={
            FULL: {"rope_type": "default", "rope_theta": 5e6},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
        default_said="a third of each head turns",
    ),
    "llama4_text": FamilyRule(defaults={"head_dim": 128}, base_defaults={ALL: 5e5}),
    "ministral3": FamilyRule(
        defaults={"head_dim": 128},
        beside=_GROWING_QUERIES,
        default_said="YaRN by 16 is taken, and longer queries beyond 16384 tokens",
        default_parameters=_GROWING_YARN
        | {
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
        },
    ),
    "mistral4": FamilyRule(
        defaults={**_LATENT.defaults, "qk_nope_head_dim": 64},
        head_dim_keys=_LATENT.head_dim_keys,
        share_of=("qk_nope_head_dim", "qk_rope_head_dim"),
        beside=_GROWING_QUERIES,
        default_said="YaRN by 128 is taken, and longer queries beyond 8192 tokens",
        default_parameters=_GROWING_YARN
        | {
            "rope_theta": 1e4,
            "factor": 128.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"),
        FamilyRule(base_defaults={ALL: 1e6}),
    ),
    "qwen3_vl_text": FamilyRule(
        defaults={"head_dim": 128}, base_defaults={ALL: 5e5}, sections=(24, 20, 20)
    ),
    "qwen3_vl_moe_text": FamilyRule(base_defaults={ALL: 5e5}, sections=(24, 20, 20)),
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
        FamilyRule(
            defaults={"head_dim": 256, "partial_rotary_factor": 0.25},
            sections=(11, 11, 10),
        ),
    ),
    "qwen3_next": FamilyRule(defaults={"head_dim": 256, "partial_rotary_factor": 0.25}),
    "mixtral": FamilyRule(base_defaults={ALL: 1e6}),
    "muse_glimmer_text": FamilyRule(
        defaults={
            "head_dim": 128,
            "sliding_window": 2048,
            "max_position_embeddings": 131072,
        },
        unrotated=(FULL,),
    ),
    "nemotron": FamilyRule(defaults={"partial_rotary_factor": 0.5}),
    "olmo3": FamilyRule(
        scaled_kind=FULL,
        base_keys={
            SLIDING: ""
        },  # the class takes rope_theta for the other layers alone
        base_defaults={FULL: 5e5, SLIDING: 5e5},
    ),
    "phi": FamilyRule(defaults={"partial_rotary_factor": 0.5}),
    "phi3": FamilyRule(read_types={"su": "longrope", "yarn": "longrope"}),
    "qwen3": FamilyRule(defaults={"head_dim": 128}),
    "seed_oss": FamilyRule(defaults={"head_dim": 128}),
    "step3p5": FamilyRule(
        defaults={"head_dim": 128, "max_position_embeddings": 128000},
        scaled_kind=FULL,
        own_share=True,
        nested_only=True,
    ),
    "smollm3": FamilyRule(base_defaults={ALL: 2e6}),
    "stablelm": FamilyRule(defaults={"partial_rotary_factor": 0.25}),
}
