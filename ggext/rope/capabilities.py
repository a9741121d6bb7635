"""What llama.cpp's code for an architecture does with RoPE, where architectures differ.

Read from the pinned llama.cpp: ``llama_model_rope_type`` for the layout,
``load_arch_tensors`` for the tensors, ``load_arch_hparams`` for the keys.
``tests/rope/test_rope_capabilities.py`` derives every entry again from what the installed library
does with a tiny model of the architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ggext.errors import RopeError
from ggext.llama_cpp_facts import compressed
from ggext.rope.scaling import Layout

#: What an architecture does with the sliding-window layers of a file that has a window: they rotate
#: as the ``others``; by a base of their own, unscaled, but with the gain's key on them
#: (``own_base``), or with nothing of the scaling (``own_table``); by the file's base, unscaled
#: (``unscaled``); or they alone rotate, as the file says (``alone``), or unscaled but with the
#: gain's key on them (``alone_unscaled``).
Sliding = Literal[
    "others", "own_base", "own_table", "unscaled", "alone", "alone_unscaled"
]
#: Whether a loader accepts ``rope_factors_long.weight`` and ``_short``: with the scaling type
#: longrope, or always.
Factors = Literal["no", "longrope", "always"]
#: How M-RoPE's sections of pairs lie: there are none, one after the other, or in turn.
Sections = Literal["none", "blocks", "interleaved"]


@dataclass(frozen=True)
class RopeCapability:
    """What llama.cpp's loader and graph of one architecture do with RoPE.

    Which layers slide stands in `llama_cpp_facts.sliding`.
    """

    layout: Layout
    # Whether the loader accepts rope_freqs.weight; where not, it fails on one.
    loads_rope_freqs: bool = False
    rope_factors: Factors = "no"
    # Whether it reads yarn_beta_fast and yarn_beta_slow; where not, they are 32 and 1 whatever a
    # file says.
    reads_betas: bool = False
    # Whether it reads yarn_log_multiplier, which divides the gain by 0.1 · it · ln f + 1.
    reads_log_multiplier: bool = False
    # How YaRN's mscale_all_dim scales all attention scores. scaled: by the log multiplier, of which
    # llama.cpp reads a tenth (`rope.decode.score_scale`). unread: the model's authors do, llama.cpp
    # never.
    scores: Literal["plain", "scaled", "unread"] = "plain"
    # Whether the loader accepts a norm between the query's projection and its rotation.
    query_norm: bool = False
    # Whether that norm stands after the rotation and takes the gain away again.
    norm_behind: bool = False
    sliding: Sliding = "others"
    # Every n-th layer is not rotated; 0: all are.
    unrotated_step: int = 0
    # With that multiplier the gain is not divided: the context multiplies by the same
    # (``llama_context`` of deepseek2).
    keeps_gain: bool = False
    # Whether layers that do not slide rotate half of what rope.dimension_count says.
    halves_rotated: bool = False
    # Whether llama.cpp refuses to shift a context of it, though it is no M-RoPE.
    refuses_shifts: bool = False
    # M-RoPE, whose pairs are those of the layout neox. llama.cpp cannot shift cached keys then.
    sections: Sections = "none"
    # The same, in files that state sections, of an architecture that can do without.
    optional_sections: Sections = "none"
    # How an indexer that chooses tokens rotates, by the same table.
    indexer: Layout | None = None
    # Whether it reads the gain's key; where not, the kernel's gain is 1 in every scaling.
    reads_gain: bool = True
    # The key of the base by which the scaled layers rotate, and that of the sliding-window layers'.
    base_key: str = "rope.freq_base"
    sliding_base_key: str = "rope.freq_base_swa"

    @property
    def shifts_keys(self) -> bool:
        """Whether a context shift turns the cached keys as new ones are turned: llama.cpp turns
        those of all layers, and after a norm that stands after the rotation."""
        alone = self.sliding in ("alone", "alone_unscaled")
        return not (self.unrotated_step or self.norm_behind or alone)

    @property
    def is_never_shifted(self) -> bool:
        """Whether llama.cpp refuses to shift a context (``get_can_shift``: four positions a token,
        or two sizes of what rotates), so that no program can roll one."""
        return self.refuses_shifts or self.sections != "none"


CAPABILITIES = {
    "afmoe": RopeCapability("neox", query_norm=True, unrotated_step=4),
    "apertus": RopeCapability(
        "neox", loads_rope_freqs=True, rope_factors="longrope", query_norm=True
    ),
    "arcee": RopeCapability("norm", loads_rope_freqs=True),
    "cohere2": RopeCapability("norm", sliding="alone"),
    "command-r": RopeCapability("norm"),
    "deepseek2": RopeCapability(
        "norm", reads_log_multiplier=True, scores="scaled", keeps_gain=True
    ),
    "deepseek32": RopeCapability(
        "norm", reads_log_multiplier=True, scores="scaled", indexer="neox"
    ),
    "deepseek4": RopeCapability(
        "norm",
        sliding="own_base",
        refuses_shifts=True,
        reads_gain=False,
        base_key=compressed.BASE,
        sliding_base_key="rope.freq_base",
    ),
    "dots1": RopeCapability("neox", query_norm=True),
    "ernie4_5": RopeCapability("norm"),
    "ernie4_5-moe": RopeCapability("norm"),
    "exaone": RopeCapability("neox", loads_rope_freqs=True),
    "exaone4": RopeCapability(
        "neox",
        loads_rope_freqs=True,
        query_norm=True,
        sliding="alone",
    ),
    "falcon": RopeCapability("neox"),
    "falcon-h1": RopeCapability("neox"),  # it loads rope_freqs, and rotates without
    "gemma": RopeCapability("neox"),
    "gemma2": RopeCapability("neox"),
    "gemma3": RopeCapability("neox", query_norm=True, sliding="own_base"),
    "gemma4": RopeCapability(
        "neox", loads_rope_freqs=True, query_norm=True, sliding="own_base"
    ),
    "glm-dsa": RopeCapability("norm", scores="scaled", indexer="norm"),
    "glm4": RopeCapability("norm", optional_sections="blocks"),
    "glm4moe": RopeCapability("neox", query_norm=True, optional_sections="blocks"),
    "gpt-oss": RopeCapability("neox"),
    "gptneox": RopeCapability("neox"),
    "granite": RopeCapability("norm", loads_rope_freqs=True, rope_factors="longrope"),
    "granitehybrid": RopeCapability("norm", loads_rope_freqs=True),
    "granitemoe": RopeCapability(
        "norm", loads_rope_freqs=True, rope_factors="longrope"
    ),
    "hunyuan-dense": RopeCapability("neox", query_norm=True, norm_behind=True),
    "hy_v3": RopeCapability("neox", query_norm=True),
    "internlm2": RopeCapability("norm"),
    "laguna": RopeCapability("neox", query_norm=True, sliding="own_table"),
    "lfm2": RopeCapability("neox", query_norm=True),
    "lfm2moe": RopeCapability("neox", query_norm=True),
    "llama": RopeCapability("norm", loads_rope_freqs=True, rope_factors="longrope"),
    "llama4": RopeCapability(
        "norm", loads_rope_freqs=True, norm_behind=True, unrotated_step=4
    ),
    "mimo2": RopeCapability("neox", sliding="own_base"),
    "minimax-m2": RopeCapability("neox", query_norm=True),
    "minimax-m3": RopeCapability("neox", query_norm=True, indexer="neox"),
    "minicpm3": RopeCapability("neox", scores="unread", rope_factors="always"),
    "mistral3": RopeCapability(
        "norm",
        loads_rope_freqs=True,
        rope_factors="longrope",
        reads_betas=True,
        reads_log_multiplier=True,
    ),
    "mistral4": RopeCapability("norm", reads_log_multiplier=True, scores="scaled"),
    "muse-glimmer": RopeCapability("norm", query_norm=True, sliding="alone_unscaled"),
    "nemotron": RopeCapability("neox"),
    "olmo": RopeCapability("norm"),
    "olmo2": RopeCapability("neox", query_norm=True, sliding="unscaled"),
    "olmoe": RopeCapability("neox", query_norm=True),
    "phi2": RopeCapability("neox"),
    "phi3": RopeCapability("neox", rope_factors="always"),
    "qwen2": RopeCapability("neox"),
    "qwen2moe": RopeCapability("neox"),
    "qwen2vl": RopeCapability("neox", sections="blocks"),
    "qwen3": RopeCapability("neox", query_norm=True),
    "qwen35": RopeCapability("neox", query_norm=True, sections="interleaved"),
    "qwen35moe": RopeCapability("neox", query_norm=True, sections="interleaved"),
    "qwen3moe": RopeCapability("neox", query_norm=True),
    "qwen3next": RopeCapability("neox", query_norm=True),
    "qwen3vl": RopeCapability("neox", query_norm=True, sections="interleaved"),
    "qwen3vlmoe": RopeCapability("neox", query_norm=True, sections="interleaved"),
    "seed_oss": RopeCapability("neox"),
    "smollm3": RopeCapability("norm", unrotated_step=4),
    "stablelm": RopeCapability("neox", query_norm=True),
    "step35": RopeCapability(
        "neox",
        loads_rope_freqs=True,
        rope_factors="longrope",
        query_norm=True,
        sliding="own_base",
        halves_rotated=True,
        refuses_shifts=True,
    ),
    "starcoder2": RopeCapability("neox"),
}


_STATES = "its layers of Mamba 2 know the order of the text"
#: Architectures that do not rotate → by what their attention knows positions.
UNROTATED = {
    "bloom": "its attention falls with distance (ALiBi)",
    "gpt2": "it has a learned vector for each position",
    "mpt": "its attention falls with distance (ALiBi)",
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _STATES),
    "starcoder": "it has a learned vector for each position",
}
#: Those that cannot go beyond the positions that they learned: llama.cpp ends the process.
LEARNED_POSITIONS = frozenset({"gpt2", "starcoder"})


#: Architectures whose files say whether they rotate.
SWITCHED = frozenset({"granite", "granitehybrid"})
#: The key that says it, false where they do not.
ROTATES = "rope.scaling.finetuned"


def unrotated(arch: str, keys: Mapping[str, Any]) -> str:
    """Why a model does not rotate: a sentence without its end, nothing where it does. ``keys``: the
    architecture's own, without their prefix."""
    if arch in SWITCHED and keys.get(ROTATES) is False:
        return f"this model does not rotate: its file says so ({ROTATES})"
    reason = UNROTATED.get(arch)
    return f"this model does not rotate: {reason}" if reason else ""


def capability_of(arch: str, *, sectioned: bool = False) -> RopeCapability:
    """``sectioned``: of a file with M-RoPE's sections, which some architectures can do without.
    Raises ``RopeError`` for an architecture whose handling of RoPE keys was not established."""
    if arch in UNROTATED:
        raise RopeError(
            f"llama.cpp's architecture {arch} does not rotate: {UNROTATED[arch]}"
        )
    if arch not in CAPABILITIES:
        raise RopeError(
            f"how llama.cpp's architecture {arch!r} reads RoPE keys is not established here; "
            "known: "
            f"{', '.join(CAPABILITIES)}"
        )
    capability = CAPABILITIES[arch]
    if sectioned and capability.optional_sections != "none":
        return replace(capability, layout="neox", sections=capability.optional_sections)
    return capability
