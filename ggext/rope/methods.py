"""Scaling method → RoPE table: the only place in the program that computes a frequency.

All arithmetic is float64. Notation: d = ``n_rot``, i = 0 … d/2-1, θᵢ = base^(-2i/d), f = factor,
L0 = original context. ``make_table`` checks every parameter first: one that the method does not
use is an error, so nothing that a user or a checkpoint says is ignored.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ggext.errors import RopeError
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

_SCALED = frozenset(
    {"factor", "original_context", "context", "context_reason", "attention_factor"}
)

#: Method → the parameters it uses.
USED_PARAMETERS: dict[str, frozenset[str]] = {
    "none": frozenset({"context", "attention_factor"}),
    "linear": _SCALED,
    "ntk": _SCALED,
    "yarn": _SCALED
    | {"beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"},
    "llama3": _SCALED | {"low_freq_factor", "high_freq_factor"},
    "dynamic": _SCALED,
    "longrope": _SCALED | {"short_factors", "long_factors"},
    "proportional": _SCALED | {"proportion"},
}

#: Defaults of the YaRN paper (section 3.2) and of Llama 3.1.
YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0
LLAMA3_LOW_FREQ_FACTOR, LLAMA3_HIGH_FREQ_FACTOR = 1.0, 4.0


def theta(geometry: RopeGeometry, base: float | None = None) -> list[float]:
    """The unscaled frequencies θᵢ = base^(-2i/d), radians per token (RoFormer, eq. 15); 0 where a
    pair does not turn."""
    base = geometry.base if base is None else base
    pairs = geometry.n_rot // 2
    turning = pairs if geometry.turning is None else geometry.turning
    return [
        base ** (-2 * i / geometry.n_rot) if i < turning else 0.0 for i in range(pairs)
    ]


def check(scaling: RopeScaling) -> None:
    """Raise ``RopeError`` unless the request is one that a table can be made from."""
    used = USED_PARAMETERS.get(scaling.method)
    if used is None:
        raise RopeError(
            f"rope type {scaling.method!r} is unknown; known: {', '.join(USED_PARAMETERS)}"
        )
    given = scaling.given()
    unused = sorted(set(given) - used)
    if unused:
        raise RopeError(
            f"rope type {scaling.method} does not use {', '.join(unused)}; leave it out, or choose "
            "the method that it belongs to"
        )
    for name, value in given.items():
        if name in ("truncate", "context_reason"):
            continue
        if name in ("short_factors", "long_factors"):
            _check_factors(name, value)
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise RopeError(
                f"rope parameter {name} is {value!r}; it must be a finite number"
            )
        if value <= 0 and name not in ("mscale", "mscale_all_dim"):
            raise RopeError(f"rope parameter {name} is {value:g}; it must be above 0")
    if "factor" in used and scaling.factor is None:
        raise RopeError(
            f"rope type {scaling.method} needs a factor; give one (for example 4)"
        )
    if scaling.factor is not None and scaling.factor < 1:
        raise RopeError(
            f"rope factor is {scaling.factor:g}; it must be 1 or more: it multiplies the context"
        )


def _check_factors(name: str, factors: object) -> None:
    values = factors if isinstance(factors, tuple) else ()
    wrong = [
        v
        for v in values
        if isinstance(v, bool)
        or not isinstance(v, (int, float))
        or not 0 < v < math.inf
    ]
    if wrong or not values:
        raise RopeError(
            f"rope parameter {name} holds {(wrong or [factors])[0]!r}; it must be numbers above 0"
        )


def check_geometry(geometry: RopeGeometry) -> None:
    if geometry.n_rot < 2 or geometry.n_rot % 2 or geometry.n_rot > geometry.head_dim:
        raise RopeError(
            f"{geometry.n_rot} rotated dimensions in a head of {geometry.head_dim}: it must be an "
            "even number from 2 to the head's size"
        )
    if not (math.isfinite(geometry.base) and geometry.base > 1):
        raise RopeError(
            f"rope base (rope_theta) is {geometry.base:g}; it must be a finite number above 1"
        )
    if geometry.trained_context < 1:
        raise RopeError(
            f"the trained context is {geometry.trained_context} tokens; it must be at least 1"
        )


def make_table(
    scaling: RopeScaling, geometry: RopeGeometry, length: int | None = None
) -> RopeTable:
    """The table that ``scaling`` means for ``geometry``. Raises ``RopeError`` on a bad request.

    ``length``: tokens of the text, where the method looks at it; ``None`` is the context that it is
    meant for.
    """
    check(scaling)
    check_geometry(geometry)
    length = extended_context(scaling, geometry) if length is None else length
    if scaling.method == "dynamic":
        table = _dynamic(scaling, geometry, length)
    elif scaling.method == "longrope":
        table = _longrope(scaling, geometry, length)
    else:
        maker = {
            "none": _none,
            "linear": _linear,
            "ntk": _ntk,
            "yarn": _yarn,
            "llama3": _llama3,
            "proportional": _proportional,
        }[scaling.method]
        table = maker(scaling, geometry)
    if (
        scaling.attention_factor is not None
    ):  # replaces the method's own gain, never multiplies it
        table = replace(table, attention_factor=float(scaling.attention_factor))
    return table


def sliding_table(scaling: RopeScaling, geometry: RopeGeometry) -> RopeTable | None:
    """The table of the sliding-window layers where they have one of their own; no scaling concerns
    it."""
    if geometry.sliding_base is None:
        return None
    own = RopeScaling(context=extended_context(scaling, geometry))
    return make_table(own, geometry.of_sliding())


def score_scale(scaling: RopeScaling) -> float:
    """What DeepSeek's own code multiplies all attention scores by, rotated or not: g(f,
    mscale_all_dim)²."""
    return (
        yarn_gain(scaling.factor or 1.0, scaling.mscale_all_dim) ** 2
        if scaling.mscale_all_dim
        else 1.0
    )


def make_tables(scaling: RopeScaling, geometry: RopeGeometry) -> tuple[RopeTable, ...]:
    """A table for each regime, from the shortest texts on: two for LongRoPE, else one. Dynamic NTK
    has one for every length beyond the original context; its first and its last are given."""
    last = make_table(scaling, geometry)
    if last.lengths is None or last.lengths[0] == 1:
        return (last,)
    return make_table(scaling, geometry, 1), last


def extended_context(scaling: RopeScaling, geometry: RopeGeometry) -> int:
    """Tokens that the request is meant for: as given, else factor · original context, rounded
    down."""
    if scaling.context is not None:
        return scaling.context
    # 1e-6 absorbs the rounding of factors that were made by dividing two contexts
    return int((scaling.factor or 1.0) * original_context(scaling, geometry) + 1e-6)


def original_context(scaling: RopeScaling, geometry: RopeGeometry) -> int:
    return scaling.original_context or geometry.trained_context


def _table(
    inv_freq: list[float], gain: float, scaling: RopeScaling, geometry: RopeGeometry
) -> RopeTable:
    return RopeTable(tuple(inv_freq), gain, extended_context(scaling, geometry))


def _none(scaling: RopeScaling, geometry: RopeGeometry) -> RopeTable:
    return _table(theta(geometry), 1.0, scaling, geometry)


def _linear(scaling: RopeScaling, geometry: RopeGeometry) -> RopeTable:
    """Position interpolation (Chen et al. 2023): every frequency divided by the factor."""
    factor = scaling.factor or 1.0
    return _table([w / factor for w in theta(geometry)], 1.0, scaling, geometry)


def ntk_base(factor: float, geometry: RopeGeometry) -> float:
    """base · f^(d/(d-2)): the lowest frequency is interpolated by f, the highest kept (bloc97
    2023)."""
    if geometry.n_rot <= 2:
        raise RopeError(
            "NTK-aware scaling needs more than 2 rotated dimensions; use linear"
        )
    return geometry.base * math.pow(factor, geometry.n_rot / (geometry.n_rot - 2))


def _ntk(scaling: RopeScaling, geometry: RopeGeometry) -> RopeTable:
    base = ntk_base(scaling.factor or 1.0, geometry)
    return _table(theta(geometry, base), 1.0, scaling, geometry)


def _proportional(scaling: RopeScaling, geometry: RopeGeometry) -> RopeTable:
    """Gemma 4: only the first int(p·head_dim/2) pairs turn, as they would if all did; the others
    stand still."""
    turning = int((scaling.proportion or 1.0) * geometry.head_dim // 2)
    factor = scaling.factor or 1.0
    return _table(
        [w / factor if i < turning else 0.0 for i, w in enumerate(theta(geometry))],
        1.0,
        scaling,
        geometry,
    )


def _dynamic(scaling: RopeScaling, geometry: RopeGeometry, length: int) -> RopeTable:
    """NTK-aware with a factor that grows with the text: f·n/L - (f - 1) at n > L tokens (emozilla
    2023)."""
    original = original_context(scaling, geometry)
    factor = scaling.factor or 1.0
    grown = max(length, original)
    base = ntk_base(factor * grown / original - (factor - 1), geometry)
    lengths = (1, original) if grown == original else (grown, grown)
    return replace(
        _table(theta(geometry, base), 1.0, scaling, geometry), lengths=lengths
    )


def _longrope(scaling: RopeScaling, geometry: RopeGeometry, length: int) -> RopeTable:
    """LongRoPE (Ding et al. 2024): searched factors for each pair, one set up to the original
    context, one beyond."""
    original = original_context(scaling, geometry)
    factor = scaling.factor or 1.0
    short = length <= original
    short_factors = scaling.short_factors or ()
    long_factors = scaling.long_factors or ()
    for name, values in (
        ("short_factors", short_factors),
        ("long_factors", long_factors),
    ):
        if len(values) != geometry.n_rot // 2:
            raise RopeError(
                f"rope parameter {name} has {len(values)} values; the model rotates "
                f"{geometry.n_rot // 2} pairs"
            )
    factors = short_factors if short else long_factors
    gain = (
        1.0
        if factor <= 1 or original <= 1
        else math.sqrt(1 + math.log(factor) / math.log(original))
    )
    table = _table(
        [w / f for w, f in zip(theta(geometry), factors, strict=True)],
        gain,
        scaling,
        geometry,
    )
    lengths = (1, original) if short else (original + 1, max(length, table.context))
    return replace(
        table,
        lengths=lengths,
    )


def yarn_correction_range(
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
    original: int,
    geometry: RopeGeometry,
) -> tuple[float, float]:
    """Pair indices between which YaRN blends (YaRN, eq. 17 ff.): c(r) = d·ln(L0/2πr) / (2·ln
    base)."""

    def pair_with_rotations(rotations: float) -> float:
        scaled = math.log(original / (rotations * 2 * math.pi))
        return geometry.n_rot * scaled / (2 * math.log(geometry.base))

    low = pair_with_rotations(beta_fast)
    high = pair_with_rotations(beta_slow)
    if truncate:
        low = math.floor(low)
        high = math.ceil(high)
    return max(low, 0), min(high, geometry.n_rot - 1)


def yarn_rotations(pair: float, scaling: RopeScaling, geometry: RopeGeometry) -> float:
    """The beta r whose c(r) is ``pair``: turns of that pair in the original context."""
    turning = math.pow(geometry.base, -2 * pair / geometry.n_rot)
    return original_context(scaling, geometry) * turning / (2 * math.pi)


def yarn_ramp(low: float, high: float, pairs: int) -> list[float]:
    """Share of interpolation of each pair: 0 up to ``low``, 1 from ``high``, linear between."""
    if low == high:
        high += 0.001  # the reference implementations avoid the division by zero so
    return [min(1.0, max(0.0, (i - low) / (high - low))) for i in range(pairs)]


def yarn_gain(factor: float, mscale: float = 1.0) -> float:
    """0.1 · mscale · ln f + 1 (YaRN, eq. 22); 1 without extension."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn(scaling: RopeScaling, geometry: RopeGeometry) -> RopeTable:
    factor = scaling.factor or 1.0
    low, high = yarn_correction_range(
        scaling.beta_fast or YARN_BETA_FAST,
        scaling.beta_slow or YARN_BETA_SLOW,
        scaling.truncate is not False,
        original_context(scaling, geometry),
        geometry,
    )
    ramp = yarn_ramp(low, high, geometry.n_rot // 2)
    inv_freq = [
        w / factor * r + w * (1 - r) for w, r in zip(theta(geometry), ramp, strict=True)
    ]
    if scaling.mscale and scaling.mscale_all_dim:
        gain = yarn_gain(factor, scaling.mscale) / yarn_gain(
            factor, scaling.mscale_all_dim
        )
    else:
        gain = yarn_gain(factor)
    return _table(inv_freq, gain, scaling, geometry)


def _llama3(scaling: RopeScaling, geometry: RopeGeometry) -> RopeTable:
    """Llama 3.1: kept, blended or divided by the wavelength's share of the original context."""
    factor = scaling.factor or 1.0
    low = scaling.low_freq_factor or LLAMA3_LOW_FREQ_FACTOR
    high = scaling.high_freq_factor or LLAMA3_HIGH_FREQ_FACTOR
    if high < low:
        raise RopeError(
            f"llama3 needs high_freq_factor not below low_freq_factor; they are {high:g} and "
            f"{low:g}"
        )
    original = original_context(scaling, geometry)

    def scaled(w: float) -> float:
        turns = original * w / (2 * math.pi)  # original context in wavelengths
        if high == low:  # Llama 4: nothing is blended
            return w if turns > high else w / factor
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        return (1 - smooth) * w / factor + smooth * w

    return _table([scaled(w) for w in theta(geometry)], 1.0, scaling, geometry)
