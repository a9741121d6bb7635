"""What stands for a table in a GGUF file: the keys and tensors of one encoding, how exact it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ggext.rope.compare import EXACT_GAIN, Comparison
from ggext.rope.encoders import Keys
from ggext.rope.keys import (
    BETA_FAST,
    BETA_SLOW,
    CONTEXT_PARAMETERS,
    FACTOR_TENSORS,
    LOG_MULTIPLIER,
    QUERY_SCALE,
    SLIDING_BASE,
)

EncodingName = Literal["keys", "tensor", "folded", "runtime"]
ENCODINGS: tuple[EncodingName, ...] = ("keys", "tensor", "folded", "runtime")


@dataclass(frozen=True)
class Encoding:
    """One way to write a table down in a GGUF file of one architecture."""

    name: EncodingName
    # Without the architecture's prefix; values of the types that llama.cpp reads (str, int as u32,
    # float as f32).
    keys: Keys
    # The expected table against what llama.cpp makes of these keys and tensors.
    exactness: Comparison
    # The gain that llama.cpp's kernel applies, at every rotation.
    kernel_gain: float
    # Name → float32 values, (n_rot / 2,).
    tensors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    # The same comparison for programs that do not set ggext's context parameters; None where they
    # compute the same.
    elsewhere: Comparison | None = None
    # Whether llama.cpp shifts the architecture's cached keys as they were rotated.
    rolls: bool = True
    # whether llama.cpp refuses to shift a context of the architecture
    never_shifted: bool = False

    @property
    def query_scale(self) -> float:
        scale = self.keys.get(QUERY_SCALE, 1.0)
        assert isinstance(scale, float)
        return scale

    @property
    def shift_safe(self) -> bool:
        """Whether a context shift, which rotates the cached keys once more, leaves them as new ones
        would be."""
        unit_gain = abs(self.kernel_gain - 1.0) <= EXACT_GAIN
        return self.never_shifted or (self.rolls and unit_gain)


#: Everything about scaling that a file can say; a new bake removes all of it first.
SCALING_KEYS = (
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    BETA_FAST,
    BETA_SLOW,
    LOG_MULTIPLIER,
    QUERY_SCALE,
    SLIDING_BASE,
    *CONTEXT_PARAMETERS,
)
SCALING_TENSORS = FACTOR_TENSORS
