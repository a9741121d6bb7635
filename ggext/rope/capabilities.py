"""What llama.cpp's code for an architecture does with RoPE, where architectures differ.

Read from llama.cpp 0c1e57098 (llama-cpp-python 0.3.36): ``llama_model_rope_type`` for the layout and
``load_arch_tensors`` for rope_freqs.
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
    ``query_norm``: a norm of each head stands between the query's projection and its rotation."""

    layout: Layout
    loads_rope_freqs: bool
    loads_rope_factors: bool = False
    query_norm: bool = False


_CAPABILITIES = {
    "llama": RopeCapability("norm", loads_rope_freqs=True, loads_rope_factors=True),
    "qwen2": RopeCapability("neox", loads_rope_freqs=False),
    "qwen2moe": RopeCapability("neox", loads_rope_freqs=False),
    "qwen3": RopeCapability("neox", loads_rope_freqs=False, query_norm=True),
    "qwen3moe": RopeCapability("neox", loads_rope_freqs=False, query_norm=True),
}


def capability_of(arch: str) -> RopeCapability:
    """Raises ``RopeError`` for an architecture whose handling of RoPE keys was not established."""
    if arch not in _CAPABILITIES:
        raise RopeError(
            f"how llama.cpp's architecture {arch!r} reads RoPE keys is not established here; known: "
            f"{', '.join(_CAPABILITIES)}"
        )
    return _CAPABILITIES[arch]
