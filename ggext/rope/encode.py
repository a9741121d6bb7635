"""RoPE table → the GGUF keys and tensors that make llama.cpp compute it.

``encode`` tries the encodings from the simplest on, reads each back as llama.cpp would
(``decode``), and takes the first that gives the requested table. What none can say is an error with
its size, so a file that is written is right, or is not written. Another encoding is one more
function in ``ENCODERS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ggext.errors import RopeError
from ggext.llama_cpp_facts.sliding import WINDOW
from ggext.rope import methods
from ggext.rope.capabilities import RopeCapability, capability_of
from ggext.rope.compare import EXACT_FREQUENCY, EXACT_GAIN, Comparison, compare
from ggext.rope.decode import decode, decode_sliding, rolls, score_scale
from ggext.rope.encoders import ENCODERS, Keys, beta_keys
from ggext.rope.encoding import Encoding, EncodingName
from ggext.rope.keys import (
    CONTEXT_PARAMETERS,
    LOG_MULTIPLIER,
    QUERY_SCALE,
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    SLIDING_ROTATED,
    float32,
)
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable
from ggext.rope.sections import SECTIONS, sections_to_write
from ggext.rope.shifts import folding_obstacle

#: Methods whose table depends on the length of the text: no single table stands for them.
_NOT_BAKED = {
    "dynamic": (
        "dynamic NTK changes its table with the length of the text and llama.cpp has no such "
        "mode; choose a fixed table: RopeScaling('ntk', factor=F), or RopeScaling('yarn', factor=F)"
    ),
}

_MAX_CONTEXT = 1 << 30  # positions are whole numbers of 32 bits with a sign


def encode(
    scaling: RopeScaling,
    geometry: RopeGeometry,
    arch: str,
    name: EncodingName | None = None,
) -> Encoding:
    """The simplest exact encoding, or the one named. Raises ``RopeError`` when llama.cpp cannot be
    made to do it.

    A gain is folded only where that is asked for, since it changes weights (``convert.choose`` asks
    for it where that costs nothing); without a gain
    ``folded`` is what the simplest encoding is. ``runtime`` is what remains where no other is
    exact: right in ggext's own contexts alone, or as near as they can be (``exactness`` tells).
    """
    if scaling.method in _NOT_BAKED:
        raise RopeError(_NOT_BAKED[scaling.method])
    requested = methods.make_table(scaling, geometry)
    if requested.context > _MAX_CONTEXT:
        raise RopeError(
            f"a factor of {scaling.factor or 1:g} makes a context of {requested.context:.3g} "
            f"tokens; the largest is {_MAX_CONTEXT:,}: choose a smaller one"
        )
    if name == "folded" and requested.attention_factor != 1.0:
        return _folded(scaling, geometry, arch, requested)
    chosen = None if name in ("folded", "runtime") else name
    candidates = _candidates(
        scaling,
        geometry,
        arch,
        requested,
        chosen,
    )
    exact = next((c for c in candidates if c.exactness.is_exact), None)
    if exact is not None:
        return exact
    best = min(candidates, key=lambda c: c.exactness.frequency_error)
    if (
        name in (None, "runtime")
        and scaling.method == "yarn"
        and best.exactness.gain_error <= EXACT_GAIN
    ):
        runtime = _with_context_parameters(candidates[0], scaling, geometry, arch)
        if (
            scaling.truncate is False
            or runtime.exactness.frequency_error < best.exactness.frequency_error
        ):
            return runtime
    raise RopeError(_inexact(best, scaling, arch, name))


def _candidates(
    scaling: RopeScaling,
    geometry: RopeGeometry,
    arch: str,
    requested: RopeTable,
    name: str | None,
) -> list[Encoding]:
    """The simplest first."""
    capability = capability_of(arch, sectioned=geometry.sections is not None)
    needed = _factor_tensors(scaling, capability)
    if name == "tensor" and not needed:
        unread = ROPE_LONG if scaling.method == "longrope" else ROPE_FREQS
        raise RopeError(
            f"llama.cpp's architecture {arch} does not load {unread}; choose "
            "encoding='keys' or encoding='folded'"
        )
    candidates = []
    for kind, encoder in ENCODERS.items():
        if (name is None or kind == name) and (kind != "tensor" or needed):
            keys, tensors = encoder(scaling, geometry, requested)
            if kind == "tensor" and needed != tuple(tensors):
                tensors = {tensor: next(iter(tensors.values())) for tensor in needed}
            tensors = {n: _padded(v, geometry) for n, v in tensors.items()}
            keys[capability.base_key] = keys.pop("rope.freq_base")
            if not capability.reads_gain:
                keys.pop("rope.scaling.attn_factor", None)
            keys |= _of_architecture(kind, scaling, geometry, requested, arch)
            keys |= {
                "context_length": requested.context,
                "rope.dimension_count": geometry.n_rot
                * (2 if capability.halves_rotated else 1),
            }
            exactness = _exactness(scaling, geometry, arch, keys, tensors)
            gain = decode(_in_file(keys, geometry), tensors, arch).attention_factor
            candidates.append(
                Encoding(
                    kind,
                    keys,
                    exactness,
                    gain,
                    tensors,
                    rolls=rolls(_in_file(keys, geometry), arch),
                    never_shifted=capability.is_never_shifted,
                )
            )
    return candidates


def _padded(factors: tuple[float, ...], geometry: RopeGeometry) -> tuple[float, ...]:
    """With a 1 for each pair that the sliding-window layers rotate beyond them: of several sizes
    llama.cpp's tensor has the largest."""
    missing = (geometry.sliding_n_rot or 0) // 2 - len(factors)
    return factors + (1.0,) * missing


def _factor_tensors(
    scaling: RopeScaling, capability: RopeCapability
) -> tuple[str, ...]:
    """The tensors of frequency factors that the architecture loads for this method, none where it
    loads none. Where it loads LongRoPE's two whatever the type, both can hold the factors of
    another method."""
    both = (ROPE_LONG, ROPE_SHORT)
    if scaling.method == "longrope":
        return both if capability.rope_factors != "no" else ()
    if capability.loads_rope_freqs:
        return (ROPE_FREQS,)
    return both if capability.rope_factors == "always" else ()


def _of_architecture(
    kind: EncodingName,
    scaling: RopeScaling,
    geometry: RopeGeometry,
    requested: RopeTable,
    arch: str,
) -> Keys:
    """The keys that this architecture reads in addition to the common ones."""
    capability = capability_of(arch, sectioned=geometry.sections is not None)
    keys: Keys = {}
    if kind == "keys" and capability.reads_betas:
        keys |= beta_keys(scaling)
    if geometry.sliding_base is not None and capability.sliding.startswith("own"):
        keys[capability.sliding_base_key] = float(geometry.sliding_base)
    if geometry.sliding_n_rot is not None:
        keys[SLIDING_ROTATED] = geometry.sliding_n_rot
    elif geometry.sliding_base is not None and capability.halves_rotated:
        keys[SLIDING_ROTATED] = geometry.n_rot
    if (
        capability.reads_log_multiplier
        and capability.scores == "scaled"
        and scaling.method in ("linear", "yarn")
    ):
        keys |= _log_multiplier(scaling, requested, keeps_gain=capability.keeps_gain)
    if geometry.sections is not None and capability.sections != "none":
        keys[SECTIONS] = sections_to_write(
            geometry.sections, geometry.n_rot // 2, capability.sections
        )
    return keys


def _log_multiplier(
    scaling: RopeScaling, requested: RopeTable, *, keeps_gain: bool
) -> Keys:
    """``deepseek2``: the multiplier k for which (gain · (0.1 k ln f + 1))² is the requested scale
    of the scores (``decode.score_scale``); the file has a tenth of it. With it the kernel's gain
    is the attention factor as it is, or that divided by YaRN's gains as in other architectures."""
    factor = float(scaling.factor or 1.0)
    if factor == 1.0:
        return {}
    gain = requested.attention_factor
    if scaling.method == "linear":
        gain *= methods.yarn_gain(factor)
    multiplier = (math.sqrt(methods.score_scale(scaling)) / gain - 1) / (
        0.1 * math.log(factor)
    )
    if float32(multiplier) == 0.0:
        return {}
    attention_factor = requested.attention_factor
    if scaling.method == "yarn" and not keeps_gain:
        attention_factor *= methods.yarn_gain(factor, multiplier) / methods.yarn_gain(
            factor
        )
    return {
        LOG_MULTIPLIER: 0.1 * multiplier,
        "rope.scaling.attn_factor": attention_factor,
    }


def _in_file(keys: Keys, geometry: RopeGeometry) -> Keys:
    """``keys`` in addition to the one by which a file says that it has sliding-window layers."""
    return keys if geometry.sliding_base is None else {**keys, WINDOW: 1}


def _exactness(
    scaling: RopeScaling,
    geometry: RopeGeometry,
    arch: str,
    keys: Keys,
    tensors: Mapping[str, tuple[float, ...]],
    *,
    by_ggext: bool = False,
) -> Comparison:
    """The worst of all regimes, of both kinds of layers, and of the scale of the scores."""
    keys = _in_file(keys, geometry)
    compared = []
    for table in methods.make_tables(scaling, geometry):
        length = table.lengths[1] if table.lengths else None
        decoded = decode(keys, tensors, arch, length, by_ggext=by_ggext)
        compared.append(compare(table, decoded))
    sliding = methods.sliding_table(scaling, geometry)
    if sliding is not None:
        compared.append(
            compare(sliding, decode_sliding(keys, arch) or decode(keys, tensors, arch))
        )
    worst = max(compared, key=lambda c: c.frequency_error)
    gain_errors = [c.gain_error for c in compared]
    if capability_of(arch).scores != "plain":
        gain_errors.append(
            abs(score_scale(keys, arch) / methods.score_scale(scaling) - 1)
        )
    return replace(worst, gain_error=max(gain_errors))


def _folded(
    scaling: RopeScaling, geometry: RopeGeometry, arch: str, requested: RopeTable
) -> Encoding:
    """The simplest encoding of the same frequencies without a gain, and m² for the query
    weights."""
    obstacle = folding_obstacle(arch, geometry)
    try:
        if (
            obstacle and geometry.sliding_base is None
        ):  # the others may be exact, if not safe
            raise RopeError(obstacle)
        carrier = encode(replace(scaling, attention_factor=1.0), geometry, arch)
    except RopeError as error:
        if obstacle:
            raise RopeError(
                f"the gain cannot be folded: {obstacle}; choose encoding='keys', and switch "
                "context shifts off in programs that roll"
            ) from None
        raise RopeError(
            f"{error} (folding changes the gain, not the frequencies)"
        ) from None
    keys = carrier.keys | {QUERY_SCALE: float32(requested.attention_factor**2)}
    exactness = _exactness(
        scaling,
        geometry,
        arch,
        keys,
        carrier.tensors,
        by_ggext=carrier.name == "runtime",
    )
    return replace(carrier, name="folded", keys=keys, exactness=exactness)


def _with_context_parameters(
    nearest: Encoding, scaling: RopeScaling, geometry: RopeGeometry, arch: str
) -> Encoding:
    """The standard keys, and the betas for ggext's own contexts.

    llama.cpp floors and ceils the range of blended pairs whoever sets the betas: for a range that
    is not to be rounded (``truncate: false``) the bounds with the smallest worst error are taken,
    which are not the next ones (gpt-oss: 32 % with pairs 3 and 18, 57 % with those next to its 8.1
    and 17.4). The betas lie in the middle between two bounds, where float32 cannot round to the
    wrong one.
    """
    low, high = methods.yarn_correction_range(
        scaling.beta_fast or methods.YARN_BETA_FAST,
        scaling.beta_slow or methods.YARN_BETA_SLOW,
        scaling.truncate is not False,
        methods.original_context(scaling, geometry),
        geometry,
    )
    firsts = range(math.ceil(low) + 2)
    lasts = range(math.floor(high) - 1, math.ceil(high) + 8)
    if scaling.truncate is not False:  # whole numbers already
        firsts = range(round(low), round(low) + 1)
        lasts = range(round(high), round(high) + 1)
    best: Encoding | None = None
    for first in firsts:
        for last in lasts:
            betas = [
                methods.yarn_rotations(pair, scaling, geometry)
                for pair in (first + 0.5, last - 0.5)
            ]
            keys = nearest.keys | dict(zip(CONTEXT_PARAMETERS, betas, strict=True))
            exactness = _exactness(scaling, geometry, arch, keys, {}, by_ggext=True)
            if (
                best is None
                or exactness.frequency_error < best.exactness.frequency_error
            ):
                best = replace(
                    nearest,
                    name="runtime",
                    keys=keys,
                    exactness=exactness,
                    elsewhere=nearest.exactness,
                )
    assert best is not None
    return best


def _inexact(best: Encoding, scaling: RopeScaling, arch: str, name: str | None) -> str:
    exactness = best.exactness
    return (
        f"llama.cpp's architecture {arch} cannot run {scaling.method} with {_describe(scaling)}"
        f"{f' as {name}' if name else ''}: the nearest "
        f"file has a frequency error of {exactness.frequency_error:.2g} and a gain error of "
        f"{exactness.gain_error:.2g} (at most {EXACT_FREQUENCY:g} and {EXACT_GAIN:g}); "
        f"{_remedy(arch)}"
    )


def _remedy(arch: str) -> str:
    capability = capability_of(arch)
    if capability.sliding == "alone_unscaled":
        return (
            "its loader scales no layer that rotates, so that another base is all that can be "
            "said: RopeScaling('ntk', factor=F)"
        )
    words = "choose what its keys can say: "
    on_all_scores = (
        capability.scores == "scaled" and not capability.reads_log_multiplier
    )
    if on_all_scores or not capability.reads_gain:
        return words + (
            "RopeScaling('ntk', factor=F), or RopeScaling('yarn', factor=F, attention_factor=1)"
        )
    return words + (
        "RopeScaling('linear', factor=F), RopeScaling('ntk', factor=F), or "
        "RopeScaling('yarn', factor=F) with the standard betas"
    )


def _describe(scaling: RopeScaling) -> str:
    given = scaling.given().items()
    return ", ".join(f"{k} {v:g}" for k, v in given if not isinstance(v, (tuple, str)))
