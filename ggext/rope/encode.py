"""RoPE table → the GGUF keys and tensors that make llama.cpp compute it.

``encode`` tries the encodings from the simplest on, reads each back as llama.cpp would
(``decode``), and takes the first that gives the wanted table. What none can say is an error with
its size, so a file that is written is right, or is not written. Another encoding is one more
function in ``_ENCODERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ggext.errors import RopeError
from ggext.rope import methods
from ggext.rope.capabilities import capability_of
from ggext.rope.compare import EXACT_FREQUENCY, EXACT_GAIN, Comparison, compare
from ggext.rope.decode import ROPE_FREQS, decode
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable


@dataclass(frozen=True)
class Encoding:
    """``keys``: without the architecture prefix, value types as llama.cpp reads them (str, int = u32,
    float = f32). ``tensors``: name → float32 values, shape (n_rot/2,). ``exactness``: the wanted table
    against what llama.cpp makes of these."""

    name: str
    keys: dict[str, str | int | float]
    exactness: Comparison
    tensors: dict[str, tuple[float, ...]] = field(default_factory=dict)


def encode(scaling: RopeScaling, geometry: RopeGeometry, arch: str) -> Encoding:
    """The simplest exact encoding. Raises ``RopeError`` when llama.cpp cannot be made to do it."""
    wanted = methods.make_table(scaling, geometry)
    capability = capability_of(arch)
    best: Encoding | None = None
    for name, encoder in _ENCODERS.items():
        if name == "tensor" and not capability.loads_rope_freqs:
            continue
        keys, tensors = encoder(scaling, geometry, wanted)
        keys |= {"context_length": wanted.context, "rope.dimension_count": geometry.n_rot}
        exactness = compare(wanted, decode(keys, tensors, geometry.layout, arch))
        candidate = Encoding(name, keys, exactness, tensors)
        if exactness.is_exact:
            return candidate
        if best is None or exactness.frequency_error < best.exactness.frequency_error:
            best = candidate
    assert best is not None
    raise RopeError(
        f"llama.cpp's architecture {arch} cannot run {scaling.method} with {_describe(scaling)}: the nearest "
        f"file has a frequency error of {best.exactness.frequency_error:.2g} and a gain error of "
        f"{best.exactness.gain_error:.2g} (at most {EXACT_FREQUENCY:g} and {EXACT_GAIN:g}); choose what its "
        "keys can say: --linear F, --ntk F, or --yarn F with the standard betas"
    )


def _describe(scaling: RopeScaling) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in scaling.given().items() if not isinstance(v, tuple))


_Written = tuple[dict[str, "str | int | float"], dict[str, tuple[float, ...]]]


def _as_keys(scaling: RopeScaling, geometry: RopeGeometry, wanted: RopeTable) -> _Written:
    """The standard keys. ``rope.scaling.factor`` divides positions in every type but none, so it is
    left out where the method works otherwise."""
    method, factor = scaling.method, float(scaling.factor or 1.0)
    keys: dict[str, str | int | float] = {"rope.freq_base": float(geometry.base), "rope.scaling.type": "none"}
    if method != "none":
        keys["rope.scaling.original_context_length"] = methods.original_context(scaling, geometry)
    if method == "ntk":
        keys["rope.freq_base"] = methods.ntk_base(factor, geometry)
    if method in ("linear", "yarn"):
        keys |= {"rope.scaling.type": method, "rope.scaling.factor": factor}
    gain = wanted.attention_factor
    if method == "yarn":
        gain /= methods.yarn_gain(factor)  # llama.cpp's kernel multiplies by it on its own
    if method in ("linear", "yarn") or gain != 1.0:
        keys["rope.scaling.attn_factor"] = gain
    return keys, {}


def _as_tensor(scaling: RopeScaling, geometry: RopeGeometry, wanted: RopeTable) -> _Written:
    """``rope_freqs.weight`` = θᵢ/ωᵢ, by which llama.cpp divides each pair's angle. No scaling type and no
    factor, as llama.cpp's own files of Llama 3 have it: an absent type with a factor means linear."""
    keys: dict[str, str | int | float] = {"rope.freq_base": float(geometry.base)}
    if scaling.method != "none":
        keys["rope.scaling.original_context_length"] = methods.original_context(scaling, geometry)
    if wanted.attention_factor != 1.0:
        keys["rope.scaling.attn_factor"] = wanted.attention_factor
    unscaled = methods.theta(geometry)
    factors = tuple(t / w for t, w in zip(unscaled, wanted.inv_freq, strict=True))
    return keys, {ROPE_FREQS: factors}


_ENCODERS: dict[str, Callable[[RopeScaling, RopeGeometry, RopeTable], _Written]] = {
    "keys": _as_keys,
    "tensor": _as_tensor,
}

#: Everything about scaling that a file can say; a new bake removes all of it first.
SCALING_KEYS = (
    "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.finetuned",
    "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier",
)  # fmt: skip
SCALING_TENSORS = (ROPE_FREQS,)
