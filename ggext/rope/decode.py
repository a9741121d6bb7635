"""GGUF keys and tensors → the RoPE table that llama.cpp computes from them.

Follows the pinned llama.cpp: ``load_hparams`` (keys), the context's constructor (gain) and
``rope_yarn`` in the kernels. Values pass through float32 as they do there; the arithmetic on them
is float64, so rounding inside the kernels is not part of this table (the kernel check measures it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ggext.errors import RopeError
from ggext.llama_cpp_facts.limits import MAX_LAYERS
from ggext.llama_cpp_facts.sliding import WINDOW, sliding_layers, window_of
from ggext.rope import methods
from ggext.rope.capabilities import RopeCapability, Sliding, capability_of
from ggext.rope.compare import EXACT_GAIN
from ggext.rope.keys import (
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    SLIDING_ROTATED,
    KeyMethod,
    context_parameters,
    count_of,
    float32,
    query_scale,
    read_attention_factor,
    read_betas,
    read_frequency_scale,
    read_log_multiplier,
    real_of,
    scaling_type,
)
from ggext.rope.scaling import RopeGeometry, RopeTable
from ggext.rope.sections import SECTIONS, still_pairs

#: A layer rotates by the scaled table, by the sliding-window layers' own, or not at all.
LayerKind = Literal["scaled", "unscaled", "unrotated"]
#: Of a file with a sliding window: the kind of the layers that do not slide, and of those that do.
_KINDS: Mapping[Sliding, tuple[LayerKind, LayerKind]] = {
    "others": ("scaled", "scaled"),
    "own_base": ("scaled", "unscaled"),
    "own_table": ("scaled", "unscaled"),
    "unscaled": ("scaled", "unscaled"),
    "alone": ("unrotated", "scaled"),
    "alone_unscaled": ("unrotated", "scaled"),
}
#: A pair divided by this or more does not turn: at 2³¹ tokens by less than float64 tells.
_STILL = 1e29
#: Radians a token: at 2³¹ tokens the angle is a whole number of float64 still.
_FASTEST = 2.0**22
#: Of a query and of a key: a score that has both is still a float32.
_LARGEST_GAIN = 1e15


def geometry_of(keys: Mapping[str, Any], arch: str) -> RopeGeometry:
    """The unscaled geometry that a file states. ``keys`` without the architecture prefix."""
    sections = _sections(keys, arch)
    capability = capability_of(arch, sectioned=sections is not None)
    head_dim = keys.get("attention.key_length")
    if (
        head_dim is None
        and "embedding_length" in keys
        and count_of(keys, "attention.head_count")
    ):
        head_dim = keys["embedding_length"] // keys["attention.head_count"]
    n_rot = keys.get("rope.dimension_count", head_dim)
    if not isinstance(n_rot, int):
        raise RopeError(
            "the file says neither rope.dimension_count nor the size of a head"
        )
    stated, n_rot = n_rot, n_rot // 2 if capability.halves_rotated else n_rot
    context = count_of(keys, "context_length")
    if not context:
        raise RopeError("the file has no context_length")
    base = float32(real_of(keys, capability.base_key, 10000.0))
    sliding_base = _sliding_base(keys, capability, base)
    head_dim = head_dim if isinstance(head_dim, int) else n_rot
    return RopeGeometry(
        n_rot=n_rot,
        head_dim=head_dim,
        base=base,
        layout=capability.layout,
        trained_context=count_of(keys, "rope.scaling.original_context_length")
        or context,
        sliding_base=sliding_base,
        sections=sections,
        **_of_sliding(keys, n_rot, stated, sliding_base),
    )


def _sliding_base(
    keys: Mapping[str, Any], capability: RopeCapability, base: float
) -> float | None:
    """Of the sliding-window layers, where they have a table of their own. Raises ``RopeError`` for
    one where they rotate as the others."""
    own = {"own_base": 10000.0, "own_table": base, "unscaled": base}
    if not count_of(keys, WINDOW):
        return None
    key = capability.sliding_base_key
    given = float32(real_of(keys, key, own.get(capability.sliding, base)))
    if capability.sliding in ("own_base", "own_table"):
        return given
    if given != base:
        raise RopeError(
            f"{key} is {given:g} and {capability.base_key} {base:g}; two bases in one file of "
            "this architecture are not read here"
        )
    return base if capability.sliding == "unscaled" else None


def _of_sliding(
    keys: Mapping[str, Any], n_rot: int, stated: int, base: float | None
) -> dict[str, int]:
    """The sizes of the sliding-window layers' heads, where they have other ones."""
    rotated = count_of(keys, SLIDING_ROTATED) or stated
    if base is None or rotated == n_rot:
        return {}
    head = count_of(keys, "attention.key_length_swa")
    head = head or count_of(keys, "attention.key_length") or rotated
    return {"sliding_n_rot": rotated, "sliding_head_dim": head}


def turning_pairs(factors: Sequence[float]) -> int | None:
    """How many of the first pairs turn where ``rope_freqs.weight`` says nothing but that the others
    do not; ``None`` where it says something else."""
    count = next((i for i, factor in enumerate(factors) if factor != 1.0), len(factors))
    return count if all(factor >= _STILL for factor in factors[count:]) else None


def _sections(keys: Mapping[str, Any], arch: str) -> tuple[int, ...] | None:
    """Four counts of pairs, where the architecture has M-RoPE and the file says them."""
    value = keys.get(SECTIONS)
    capability = capability_of(arch, sectioned=True)
    if value is None or capability.sections == "none":
        return None
    whole = isinstance(value, (list, tuple)) and all(
        type(n) is int and n >= 0 for n in value
    )
    if not whole or len(value) != 4:
        raise RopeError(
            f"{SECTIONS} is {value!r}; it must be four whole numbers of pairs"
        )
    if (
        capability.optional_sections != "none" and 0 in value[:2]
    ):  # ``llama_hparams::use_mrope``
        return None
    return tuple(value)


def layer_kinds(keys: Mapping[str, Any], arch: str) -> tuple[LayerKind, ...]:
    """How each layer of a file rotates, as llama.cpp reads it."""
    capability = capability_of(arch)
    layers = count_of(keys, "block_count")
    if layers > MAX_LAYERS:
        raise RopeError(
            f"block_count is {layers}; llama.cpp takes at most {MAX_LAYERS} layers"
        )
    step = capability.unrotated_step
    if step:
        return tuple(
            "unrotated" if (i + 1) % step == 0 else "scaled" for i in range(layers)
        )
    if capability.sliding == "others" or not window_of(arch, keys, layers):
        return _KINDS["others"][:1] * layers
    try:
        slides = sliding_layers(arch, keys, layers)
    except ValueError as error:
        raise RopeError(str(error)) from None
    others, sliding = _KINDS[capability.sliding]
    return tuple(sliding if slide else others for slide in slides)


def decode(
    keys: Mapping[str, Any],
    tensors: Mapping[str, Sequence[float]],
    arch: str,
    n_ctx: int | None = None,
    *,
    by_ggext: bool = False,
) -> RopeTable:
    """The effective table. ``keys``: the architecture's keys without their prefix; ``tensors``: the
    RoPE factor tensors that the file holds. ``n_ctx``: tokens that the context has, by which
    llama.cpp picks one of LongRoPE's tables (it rounds what is asked for up to a multiple of 256);
    ``None`` is the file's own. ``by_ggext``: in a context with ``context_parameters``, which other
    programs do not set. Raises ``RopeError`` for what llama.cpp would refuse.

    A gain that is folded into the query weights counts as the gain that it stands for: attention is
    the same."""
    geometry = geometry_of(keys, arch)
    methods.check_geometry(geometry)
    kind = scaling_type(keys)
    if capability_of(arch).sliding == "alone_unscaled":
        kind = "none"
    scale = read_frequency_scale(keys, kind)
    inv_freq = methods.theta(geometry)
    context = count_of(keys, "context_length")
    _refuse_unread(tensors, kind, arch)
    name = ROPE_FREQS
    lengths = None
    if kind == "longrope" or ROPE_LONG in tensors or ROPE_SHORT in tensors:
        name, lengths = _regime(
            tensors, n_ctx or context, geometry.trained_context, context
        )
    if name in tensors:
        factors, stated = tensors[name], (geometry.sliding_n_rot or 0) // 2
        if len(factors) == stated > len(inv_freq):  # as many as the other layers have
            factors = factors[: len(inv_freq)]
        inv_freq = _divided(inv_freq, factors, name)
    if kind == "yarn":
        parameters = context_parameters(keys) if by_ggext else {}
        fast, slow = read_betas(keys, arch, parameters)
        low, high = methods.yarn_correction_range(
            fast, slow, True, geometry.trained_context, geometry
        )
        # the kernel's own guard, which differs from the paper's where high ≤ low
        ramp = [
            min(1.0, max(0.0, (i - low) / max(0.001, high - low)))
            for i in range(len(inv_freq))
        ]
        inv_freq = [
            w * scale * r + w * (1 - r) for w, r in zip(inv_freq, ramp, strict=True)
        ]
    else:
        inv_freq = [w * scale for w in inv_freq]
    if geometry.sections is not None:
        kind_of_sections = capability_of(arch, sectioned=True).sections
        still = still_pairs(geometry.sections, len(inv_freq), kind_of_sections)
        inv_freq = [0.0 if i in still else w for i, w in enumerate(inv_freq)]
    gain = _kernel_gain(keys, arch, kind, scale) * math.sqrt(query_scale(keys))
    return _usable(RopeTable(tuple(inv_freq), gain, context, lengths))


def decode_sliding(keys: Mapping[str, Any], arch: str) -> RopeTable | None:
    """The effective table of the sliding-window layers, ``None`` where they have none of their
    own."""
    geometry = geometry_of(keys, arch)
    if geometry.sliding_base is None:
        return None
    own = geometry.of_sliding()
    methods.check_geometry(own)
    gain = _sliding_gain(keys, arch)
    return _usable(
        RopeTable(tuple(methods.theta(own)), gain, count_of(keys, "context_length"))
    )


def _sliding_gain(keys: Mapping[str, Any], arch: str) -> float:
    capability = capability_of(arch)
    reads = capability.reads_gain and capability.sliding == "own_base"
    return read_attention_factor(keys) if reads else 1.0


def _usable(table: RopeTable) -> RopeTable:
    """The table. Raises RopeError for one that nothing can be rotated by: llama.cpp would compute
    with it all the same, and give numbers without a meaning."""
    gain = table.attention_factor
    if not 0 < gain <= _LARGEST_GAIN:
        raise RopeError(
            f"the attention factor of the file is {gain:g}; it must be a number above 0, and at "
            f"most {_LARGEST_GAIN:g}"
        )
    for frequency in table.inv_freq:
        if not 0 <= frequency <= _FASTEST:
            raise RopeError(
                f"a frequency of the file is {frequency:g} radians a token; it must be at most "
                f"{_FASTEST:g}"
            )
    return table


def rolls(keys: Mapping[str, Any], arch: str) -> bool:
    """Whether a context shift turns the cached keys of every layer as new ones are turned, but for
    the gain. In a shift llama.cpp takes the gain's key for sliding-window layers too that have a
    table of their own."""
    own_table = geometry_of(keys, arch).sliding_base is not None
    return capability_of(arch).shifts_keys and not (
        own_table and abs(read_attention_factor(keys) - 1) > EXACT_GAIN
    )


def score_scale(keys: Mapping[str, Any], arch: str) -> float:
    """What all attention scores are multiplied by in addition to 1/√d: 1 but in ``deepseek2`` and
    ``mistral4``, whose graph takes the kernel's gain g back from the context's and multiplies by
    (g · (0.1 · multiplier · ln f + 1))², f the factor of the frequencies whatever the scaling
    type."""
    if capability_of(arch).scores != "scaled":
        return 1.0
    kind = scaling_type(keys)
    factor = 1 / read_frequency_scale(keys, kind)
    gain = _kernel_gain(keys, arch, kind, 1 / factor)
    if (
        kind != "yarn"
    ):  # the kernel multiplies by this in YaRN alone, and the graph believes always
        gain *= methods.yarn_gain(factor)
    return (gain * methods.yarn_gain(factor, read_log_multiplier(keys, arch))) ** 2


def _kernel_gain(
    keys: Mapping[str, Any], arch: str, kind: KeyMethod, scale: float
) -> float:
    """YaRN: the context has get_mscale / (1 + 0.1 ln f), the kernel multiplies by (1 + 0.1 ln f),
    which leaves get_mscale; with a multiplier that is divided by the multiplier's, in ``deepseek2``
    by itself."""
    if not capability_of(arch).reads_gain:
        return 1.0
    gain = read_attention_factor(keys)
    if kind != "yarn":
        return gain
    multiplier = read_log_multiplier(keys, arch)
    if capability_of(arch).keeps_gain:
        return gain if multiplier else gain * methods.yarn_gain(1 / scale)
    return (
        gain * methods.yarn_gain(1 / scale) / methods.yarn_gain(1 / scale, multiplier)
    )


def _regime(
    tensors: Mapping[str, Sequence[float]], n_ctx: int, original: int, context: int
) -> tuple[str, tuple[int, int] | None]:
    """LongRoPE's tensor in a context of ``n_ctx`` tokens, and the lengths of context that get the
    same."""
    long = n_ctx > original
    name = ROPE_LONG if long else ROPE_SHORT
    if name not in tensors:
        raise RopeError(
            f"the scaling is longrope and there is no {name}; llama.cpp would not scale at all"
        )
    if tensors.get(ROPE_LONG) == tensors.get(ROPE_SHORT):
        return name, None
    return name, (original + 1, max(n_ctx, context)) if long else (1, original)


def _refuse_unread(
    tensors: Mapping[str, Sequence[float]], kind: str, arch: str
) -> None:
    """A tensor that the loader does not create makes the load fail."""
    capability = capability_of(arch)
    for name in tensors:
        if name == ROPE_FREQS:
            loads = capability.loads_rope_freqs
            in_this_type = kind != "longrope"
        else:
            loads = capability.rope_factors != "no"
            in_this_type = kind == "longrope" or capability.rope_factors == "always"
        if not loads:
            raise RopeError(
                f"the file holds {name}, which llama.cpp's architecture {arch} does not load"
            )
        if not in_this_type:
            raise RopeError(
                f"the file holds {name}, which llama.cpp does not load with the scaling type {kind}"
            )


def _divided(
    inv_freq: Sequence[float], factors: Sequence[float], name: str
) -> list[float]:
    if len(factors) != len(inv_freq):
        raise RopeError(
            f"{name} has {len(factors)} values; the model rotates {len(inv_freq)} pairs"
        )
    if not all(math.isfinite(f) and f > 0 for f in factors):
        raise RopeError(f"{name} holds a value that is not a number above 0")
    return [w / float32(f) for w, f in zip(inv_freq, factors, strict=True)]
