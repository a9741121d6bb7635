"""What llama.cpp's code for an architecture does with RoPE, where architectures differ.

Read from llama.cpp 0c1e57098 (llama-cpp-python 0.3.36): ``llama_model_rope_type`` for the layout,
``load_arch_tensors`` for the tensors, ``load_arch_hparams`` for the keys. ``tests/test_rope_capabilities.py`` derives
every entry again from what the installed library does with a tiny model of the architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggext.errors import RopeError
from ggext.rope.scaling import Layout

#: Whose reading of the keys an encoding is made for.
LLAMA_CPP = "0c1e57098"


@dataclass(frozen=True)
class RopeCapability:
    """``loads_rope_freqs``: the loader accepts ``rope_freqs.weight``; where not, it fails on one.
    ``loads_rope_factors``: with the scaling type longrope it accepts ``rope_factors_long.weight`` and ``_short``.
    ``reads_betas``: it reads ``yarn_beta_fast`` and ``yarn_beta_slow``; where not, they are 32 and 1 whatever a file
    says. ``reads_log_multiplier``: it reads ``yarn_log_multiplier``, which divides the gain by 0.1 · it · ln f + 1.
    ``query_norm``: the loader accepts a norm between the query's projection and its rotation. ``unrotated_step``:
    every so manieth layer does not rotate; 0: all do."""

    layout: Layout
    loads_rope_freqs: bool
    loads_rope_factors: bool = False
    reads_betas: bool = False
    reads_log_multiplier: bool = False
    query_norm: bool = False
    unrotated_step: int = 0

    def rotates(self, layer: int) -> bool:
        return not self.unrotated_step or (layer + 1) % self.unrotated_step != 0


CAPABILITIES = {
    "falcon": RopeCapability("neox", loads_rope_freqs=False),
    "glm4": RopeCapability("norm", loads_rope_freqs=False),
    "gptneox": RopeCapability("neox", loads_rope_freqs=False),
    "granite": RopeCapability("norm", loads_rope_freqs=True, loads_rope_factors=True),
    "llama": RopeCapability("norm", loads_rope_freqs=True, loads_rope_factors=True),
    "mistral3": RopeCapability(
        "norm", loads_rope_freqs=True, loads_rope_factors=True, reads_betas=True, reads_log_multiplier=True
    ),
    "olmo2": RopeCapability("neox", loads_rope_freqs=False, query_norm=True),
    "phi2": RopeCapability("neox", loads_rope_freqs=False),
    "qwen2": RopeCapability("neox", loads_rope_freqs=False),
    "qwen2moe": RopeCapability("neox", loads_rope_freqs=False),
    "qwen3": RopeCapability("neox", loads_rope_freqs=False, query_norm=True),
    "qwen3moe": RopeCapability("neox", loads_rope_freqs=False, query_norm=True),
    "smollm3": RopeCapability("norm", loads_rope_freqs=False, unrotated_step=4),
    "stablelm": RopeCapability("neox", loads_rope_freqs=False, query_norm=True),
    "starcoder2": RopeCapability("neox", loads_rope_freqs=False),
}


def capability_of(arch: str) -> RopeCapability:
    """Raises ``RopeError`` for an architecture whose handling of RoPE keys was not established."""
    if arch not in CAPABILITIES:
        raise RopeError(
            f"how llama.cpp's architecture {arch!r} reads RoPE keys is not established here; known: "
            f"{', '.join(CAPABILITIES)}"
        )
    return CAPABILITIES[arch]
