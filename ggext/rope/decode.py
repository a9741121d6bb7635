"""GGUF keys and tensors → the RoPE table that llama.cpp computes from them.

Follows llama.cpp 0c1e57098: ``load_hparams`` (keys), the context's constructor (gain) and
``rope_yarn`` in the kernels. Values pass through float32 as they do there; the arithmetic on them
is float64, so rounding inside the kernels is not part of this table (the kernel check measures it).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from ggext.errors import RopeError
from ggext.rope import methods
from ggext.rope.capabilities import capability_of
from ggext.rope.scaling import Layout, RopeGeometry, RopeTable

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
#: Every tensor that ``decode`` looks at.
FACTOR_TENSORS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)
BETA_FAST, BETA_SLOW = "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"
LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
#: Ours: what the query weights of the file were multiplied by (m², float32). llama.cpp does not read it and need
#: not: the weights have it.
QUERY_SCALE = "rope.ggext.query_scale"
#: Ours: what the context is to be made with, where the architecture reads no such key → llama.cpp's name of the
#: context parameter. They work for every architecture.
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


def geometry_of(keys: Mapping[str, Any], layout: Layout) -> RopeGeometry:
    """The unscaled geometry that a file states. ``keys`` without the architecture prefix."""
    head_dim = keys.get("attention.key_length")
    if head_dim is None and "embedding_length" in keys and _count(keys, "attention.head_count"):
        head_dim = keys["embedding_length"] // keys["attention.head_count"]
    n_rot = keys.get("rope.dimension_count", head_dim)
    if not isinstance(n_rot, int):
        raise RopeError("the file says neither rope.dimension_count nor the size of a head")
    context = _count(keys, "context_length")
    if not context:
        raise RopeError("the file has no context_length")
    return RopeGeometry(
        n_rot=n_rot,
        head_dim=head_dim if isinstance(head_dim, int) else n_rot,
        base=float32(_real(keys, "rope.freq_base", 10000.0)),
        layout=layout,
        trained_context=_count(keys, "rope.scaling.original_context_length") or context,
    )


def decode(
    keys: Mapping[str, Any],
    tensors: Mapping[str, Sequence[float]],
    layout: Layout,
    arch: str,
    n_ctx: int | None = None,
    *,
    by_ggext: bool = False,
) -> RopeTable:
    """The effective table. ``keys``: the architecture's keys without their prefix; ``tensors``: the RoPE
    factor tensors that the file holds. ``n_ctx``: tokens that the context has, by which llama.cpp picks one of
    LongRoPE's tables (it rounds what is asked for up to a multiple of 256); ``None`` is the file's own.
    ``by_ggext``: in a context with ``context_parameters``, which other programs do not set. Raises ``RopeError``
    for what llama.cpp would refuse.

    A gain that is folded into the query weights counts as the gain that it stands for: attention is the same."""
    geometry = geometry_of(keys, layout)
    methods.check_geometry(geometry)
    kind = scaling_type(keys)
    scale = 1.0 if kind == "none" else _frequency_scale(keys)
    inv_freq = methods.theta(geometry)
    context = _count(keys, "context_length")
    name, lengths = ROPE_FREQS, None
    if kind == "longrope":
        name, lengths = _regime(n_ctx or context, geometry.trained_context, context)
    _refuse_unread(tensors, kind, arch)
    if name in tensors:
        inv_freq = _divided(inv_freq, tensors[name], name)
    elif kind == "longrope":
        raise RopeError(f"rope.scaling.type is longrope and there is no {name}; llama.cpp would not scale at all")
    gain = float32(_real(keys, "rope.scaling.attn_factor", 1.0))
    if kind == "yarn":
        fast, slow = _betas(keys, arch, context_parameters(keys) if by_ggext else {})
        low, high = methods.yarn_correction_range(fast, slow, True, geometry.trained_context, geometry)
        # the kernel's own guard, which differs from the paper's where high ≤ low
        ramp = [min(1.0, max(0.0, (i - low) / max(0.001, high - low))) for i in range(len(inv_freq))]
        inv_freq = [w * scale * r + w * (1 - r) for w, r in zip(inv_freq, ramp, strict=True)]
        # context: get_mscale / (1 + 0.1 ln f); kernel: · (1 + 0.1 ln f); they leave get_mscale
        gain *= methods.yarn_gain(1 / scale) / methods.yarn_gain(1 / scale, _log_multiplier(keys, arch))
    else:
        inv_freq = [w * scale for w in inv_freq]
    gain *= math.sqrt(query_scale(keys))
    return RopeTable(tuple(inv_freq), gain, context, lengths)


def _regime(n_ctx: int, original: int, context: int) -> tuple[str, tuple[int, int]]:
    """LongRoPE's tensor in a context of ``n_ctx`` tokens, and the lengths of context that get the same."""
    if n_ctx > original:
        return ROPE_LONG, (original + 1, max(n_ctx, context))
    return ROPE_SHORT, (1, original)


def _refuse_unread(tensors: Mapping[str, Sequence[float]], kind: str, arch: str) -> None:
    """A tensor that the loader does not create makes the load fail."""
    capability = capability_of(arch)
    for name in tensors:
        loads = capability.loads_rope_freqs if name == ROPE_FREQS else capability.loads_rope_factors
        if not loads:
            raise RopeError(f"the file holds {name}, which llama.cpp's architecture {arch} does not load")
        if (name == ROPE_FREQS) is (kind == "longrope"):
            raise RopeError(f"the file holds {name}, which llama.cpp does not load with the scaling type {kind}")


def query_scale(keys: Mapping[str, Any]) -> float:
    """What the file's query weights are multiplied by; 1 where no gain is folded into them."""
    scale = float32(_real(keys, QUERY_SCALE, 1.0))
    if not (math.isfinite(scale) and scale > 0):
        raise RopeError(f"{QUERY_SCALE} is {scale}; it must be a number above 0")
    return scale


def scaling_type(keys: Mapping[str, Any]) -> KeyMethod:
    """``rope.scaling.type``; absent means linear, as in llama.cpp's loader."""
    kind = keys.get("rope.scaling.type", "linear")
    if kind not in _TYPES:
        raise RopeError(f"rope.scaling.type is {kind!r}; llama.cpp knows {', '.join(_TYPES)}")
    return cast(KeyMethod, kind)


def stated_method(keys: Mapping[str, Any]) -> tuple[KeyMethod, float]:
    """Method and factor as a file's keys say them; linear or YaRN by 1 is none, LongRoPE needs no factor."""
    kind = scaling_type(keys)
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    if kind == "longrope" or (kind != "none" and factor not in (0.0, 1.0)):
        return kind, factor
    return "none", 1.0


def context_parameters(keys: Mapping[str, Any]) -> dict[str, float]:
    """llama.cpp's context parameters that make a file exact whose architecture does not read the keys for it."""
    parameters = {name: float32(_real(keys, key, 0.0)) for key, name in CONTEXT_PARAMETERS.items() if key in keys}
    for name, value in parameters.items():
        if not (math.isfinite(value) and value > 0):
            raise RopeError(f"rope.ggext.{name} is {value}; it must be a number above 0")
    return parameters


def _betas(keys: Mapping[str, Any], arch: str, parameters: Mapping[str, float]) -> tuple[float, float]:
    if parameters or not capability_of(arch).reads_betas:
        return (
            parameters.get("yarn_beta_fast", methods.YARN_BETA_FAST),
            parameters.get("yarn_beta_slow", methods.YARN_BETA_SLOW),
        )
    fast = _real(keys, BETA_FAST, methods.YARN_BETA_FAST)
    slow = _real(keys, BETA_SLOW, methods.YARN_BETA_SLOW)
    for key, value in ((BETA_FAST, fast), (BETA_SLOW, slow)):
        if not (math.isfinite(value) and value > 0):
            raise RopeError(f"{key} is {value}; it must be a number above 0")
    return float32(fast), float32(slow)


def _log_multiplier(keys: Mapping[str, Any], arch: str) -> float:
    """0 where the architecture does not read it: then nothing is divided."""
    value = _real(keys, LOG_MULTIPLIER, 0.0) if capability_of(arch).reads_log_multiplier else 0.0
    if not (math.isfinite(value) and value >= 0):
        raise RopeError(f"{LOG_MULTIPLIER} is {value}; it must be a number, 0 or above")
    return float32(value)


def _frequency_scale(keys: Mapping[str, Any]) -> float:
    factor = _real(keys, "rope.scaling.factor", _real(keys, "rope.scale_linear", 0.0))
    if factor < 0 or not math.isfinite(factor):
        raise RopeError(f"rope.scaling.factor is {factor}; it must be a number above 0")
    return 1.0 / float32(factor) if factor else 1.0


def _divided(inv_freq: Sequence[float], factors: Sequence[float], name: str) -> list[float]:
    if len(factors) != len(inv_freq):
        raise RopeError(f"{name} has {len(factors)} values; the model rotates {len(inv_freq)} pairs")
    if not all(math.isfinite(f) and f > 0 for f in factors):
        raise RopeError(f"{name} holds a value that is not a number above 0")
    return [w / float32(f) for w, f in zip(inv_freq, factors, strict=True)]


def _count(keys: Mapping[str, Any], key: str) -> int:
    value = keys.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RopeError(f"{key} is {value!r}; it must be a whole number")
    return value


def _real(keys: Mapping[str, Any], key: str, default: float) -> float:
    value = keys.get(key, default)
    if not isinstance(value, float):  # llama.cpp refuses to load a file with a whole number here
        raise RopeError(f"{key} is {value!r}; it must be a number of type FLOAT32")
    return value
