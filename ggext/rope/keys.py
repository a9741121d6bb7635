"""GGUF's keys of RoPE scaling: the name of each, and its value as llama.cpp reads it."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from ggext.errors import RopeError
from ggext.rope import methods
from ggext.rope.capabilities import capability_of

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
#: Every tensor that ``decode`` looks at.
FACTOR_TENSORS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)
BETA_FAST, BETA_SLOW = "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"
LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
SLIDING_BASE = "rope.freq_base_swa"
SLIDING_ROTATED = "rope.dimension_count_swa"
#: Ours: what the query weights of the file were multiplied by (m², float32). llama.cpp does not
#: read it and need not: the weights have it.
QUERY_SCALE = "rope.ggext.query_scale"
#: Ours: what the context is to be made with, where the architecture reads no such key → llama.cpp's
#: name of the context parameter. They work for every architecture.
CONTEXT_PARAMETERS = {
    "rope.ggext.yarn_beta_fast": "yarn_beta_fast",
    "rope.ggext.yarn_beta_slow": "yarn_beta_slow",
}
KeyMethod = Literal["none", "linear", "yarn", "longrope"]
_TYPES: tuple[KeyMethod, ...] = get_args(KeyMethod)


def float32(value: float) -> float:
    """``value`` as float32 stores it."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


def read_attention_factor(keys: Mapping[str, Any]) -> float:
    return float32(real_of(keys, "rope.scaling.attn_factor", 1.0))


def query_scale(keys: Mapping[str, Any]) -> float:
    """What the file's query weights are multiplied by; 1 where no gain is folded into them."""
    scale = float32(real_of(keys, QUERY_SCALE, 1.0))
    if not (math.isfinite(scale) and scale > 0):
        raise RopeError(f"{QUERY_SCALE} is {scale}; it must be a number above 0")
    return scale


def scaling_type(keys: Mapping[str, Any]) -> KeyMethod:
    """``rope.scaling.type``; absent means linear, as in llama.cpp's loader."""
    kind = keys.get("rope.scaling.type", "linear")
    if kind not in _TYPES:
        raise RopeError(
            f"rope.scaling.type is {kind!r}; llama.cpp knows {', '.join(_TYPES)}"
        )
    return cast(KeyMethod, kind)


def stated_method(keys: Mapping[str, Any]) -> tuple[KeyMethod, float]:
    """Method and factor as a file's keys say them; linear or YaRN by 1 is none, LongRoPE needs no
    factor."""
    kind = scaling_type(keys)
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    if kind == "longrope" or (kind != "none" and factor not in (0.0, 1.0)):
        return kind, factor
    return "none", 1.0


def context_parameters(keys: Mapping[str, Any]) -> dict[str, float]:
    """llama.cpp's context parameters that make a file exact whose architecture does not read the
    keys for it."""
    parameters = {
        name: float32(real_of(keys, key, 0.0))
        for key, name in CONTEXT_PARAMETERS.items()
        if key in keys
    }
    for name, value in parameters.items():
        if not (math.isfinite(value) and value > 0):
            raise RopeError(
                f"rope.ggext.{name} is {value}; it must be a number above 0"
            )
    return parameters


def read_betas(
    keys: Mapping[str, Any], arch: str, parameters: Mapping[str, float]
) -> tuple[float, float]:
    if parameters or not capability_of(arch).reads_betas:
        return (
            parameters.get("yarn_beta_fast", methods.YARN_BETA_FAST),
            parameters.get("yarn_beta_slow", methods.YARN_BETA_SLOW),
        )
    fast = real_of(keys, BETA_FAST, methods.YARN_BETA_FAST)
    slow = real_of(keys, BETA_SLOW, methods.YARN_BETA_SLOW)
    for key, value in ((BETA_FAST, fast), (BETA_SLOW, slow)):
        if not (math.isfinite(value) and value > 0):
            raise RopeError(f"{key} is {value}; it must be a number above 0")
    return float32(fast), float32(slow)


def read_log_multiplier(keys: Mapping[str, Any], arch: str) -> float:
    """0 where the architecture does not read it: then nothing is divided."""
    capability = capability_of(arch)
    value = (
        real_of(keys, LOG_MULTIPLIER, 0.0) if capability.reads_log_multiplier else 0.0
    )
    if not (math.isfinite(value) and (value >= 0 or capability.scores == "scaled")):
        raise RopeError(f"{LOG_MULTIPLIER} is {value}; it must be a number, 0 or above")
    return (
        float32(value) / float32(0.1)
        if capability.scores == "scaled"
        else float32(value)
    )


def read_frequency_scale(keys: Mapping[str, Any], kind: KeyMethod) -> float:
    if kind == "none":
        return 1.0
    factor = real_of(
        keys, "rope.scaling.factor", real_of(keys, "rope.scale_linear", 0.0)
    )
    if factor < 0 or not math.isfinite(factor):
        raise RopeError(f"rope.scaling.factor is {factor}; it must be a number above 0")
    return 1.0 / float32(factor) if factor else 1.0


def count_of(keys: Mapping[str, Any], key: str) -> int:
    value = keys.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RopeError(f"{key} is {value!r}; it must be a whole number")
    return value


def real_of(keys: Mapping[str, Any], key: str, default: float) -> float:
    value = keys.get(key, default)
    if not isinstance(
        value, float
    ):  # llama.cpp refuses to load a file with a whole number here
        raise RopeError(f"{key} is {value!r}; it must be a number of type FLOAT32")
    return value
