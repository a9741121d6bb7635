"""A Hugging Face ``config.json`` → what it says about RoPE.

Both spellings occur, ``rope_scaling`` (older) and ``rope_parameters`` (newer, with ``rope_theta``
inside). The judge is transformers: what it computes from the same file is what we must compute, and
what it would silently ignore is an error here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ggext.errors import RopeError
from ggext.rope.scaling import Layout, Method, RopeGeometry, RopeScaling

_METHOD_OF_TYPE: dict[str, Method] = {
    "default": "none", "none": "none", "linear": "linear", "dynamic": "dynamic", "yarn": "yarn",
    "longrope": "longrope", "su": "longrope", "llama3": "llama3",
}  # fmt: skip

#: Key in the checkpoint → our parameter, for all methods together.
PARAMETER_OF_KEY = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "attention_factor": "attention_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "short_factor": "short_factors",
    "long_factor": "long_factors",
}

#: What transformers' function for a type reads; another key in the file would be ignored by it.
_KEYS_OF_METHOD: dict[Method, frozenset[str]] = {
    "none": frozenset(),
    "linear": frozenset({"factor", "original_max_position_embeddings"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "yarn": frozenset(PARAMETER_OF_KEY) - {"low_freq_factor", "high_freq_factor", "short_factor", "long_factor"},
    "longrope": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"}
    ),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
}
_REQUIRED_KEYS: dict[Method, tuple[str, ...]] = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "linear": ("factor",),
    "dynamic": ("factor",),
}
#: Keys that say who made the file and change no number.
_INFORMATIVE_KEYS = frozenset({"type", "rope_type", "rope_theta", "partial_rotary_factor", "finetuned"})


@dataclass(frozen=True)
class CheckpointRope:
    """``scaling`` and ``geometry`` as the checkpoint means them; ``notes``: one line for each thing
    that a reader of the file might take otherwise."""

    scaling: RopeScaling
    geometry: RopeGeometry
    notes: tuple[str, ...] = ()


def read_rope(config: Mapping[str, Any], layout: Layout, source: str = "config.json") -> CheckpointRope:
    """RoPE of a model with one table for all its layers.

    ``config``: the parsed ``config.json`` (its text part). Raises ``RopeError`` naming the key, its
    value and what would be accepted.
    """
    parameters = _parameters(config, source)
    method = _method(parameters, source)
    _refuse_unknown_keys(parameters, method, source)
    max_position = _integer(config, "max_position_embeddings", source)
    notes: list[str] = []

    scaling = _scaling(parameters, config, method, max_position, source, notes)
    head_dim = _head_dim(config, source)
    partial = _number(parameters.get("partial_rotary_factor", config.get("partial_rotary_factor")), 1.0,
                      "partial_rotary_factor", source)  # fmt: skip
    geometry = RopeGeometry(
        n_rot=int(head_dim * partial),
        head_dim=head_dim,
        base=_base(parameters, config, source, notes),
        layout=layout,
        trained_context=scaling.original_context or max_position,
    )
    return CheckpointRope(scaling, geometry, tuple(notes))


def _parameters(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The one dict of RoPE parameters, whichever spelling it stands under; empty when there is none."""
    found = {k: config[k] for k in ("rope_parameters", "rope_scaling") if config.get(k) is not None}
    for key, value in found.items():
        if not isinstance(value, Mapping):
            raise RopeError(f"{source}: {key} is {value!r}; it must be an object or null")
        nested = sorted(k for k, v in value.items() if isinstance(v, Mapping))
        if nested:
            raise RopeError(
                f"{source}: {key} has separate settings for {', '.join(nested)}; this architecture is "
                "converted with one RoPE table for all layers"
            )
    if len(found) == 2 and found["rope_parameters"] != found["rope_scaling"]:
        raise RopeError(f"{source}: rope_parameters and rope_scaling are both there and differ; remove the wrong one")
    return cast(Mapping[str, Any], next(iter(found.values()), {}))


def _method(parameters: Mapping[str, Any], source: str) -> Method:
    names = {parameters[k] for k in ("rope_type", "type") if isinstance(parameters.get(k), str)}
    wrong = [parameters[k] for k in ("rope_type", "type") if not isinstance(parameters.get(k, ""), str)]
    if wrong:
        raise RopeError(f"{source}: the rope type is {wrong[0]!r}; it must be a string")
    methods = {_METHOD_OF_TYPE.get(n) for n in names} or {"none"}
    if None in methods:
        unknown = ", ".join(sorted(n for n in names if n not in _METHOD_OF_TYPE))
        raise RopeError(f"{source}: rope type {unknown!r} is unknown; known: {', '.join(_METHOD_OF_TYPE)}")
    if len(methods) > 1:
        raise RopeError(f"{source}: rope_type and type name different methods: {', '.join(sorted(names))}")
    if not names and parameters.get("factor") is not None:
        raise RopeError(f"{source}: rope parameters with a factor but no rope_type; add one")
    return cast(Method, methods.pop())


def _refuse_unknown_keys(parameters: Mapping[str, Any], method: Method, source: str) -> None:
    given = {k for k, v in parameters.items() if v is not None}
    left_over = sorted(given - _KEYS_OF_METHOD[method] - _INFORMATIVE_KEYS)
    if left_over:
        raise RopeError(f"{source}: rope type {method} does not use {', '.join(left_over)}; remove what is not meant")
    missing = [k for k in _REQUIRED_KEYS.get(method, ()) if parameters.get(k) is None]
    if missing:
        raise RopeError(f"{source}: rope type {method} needs {', '.join(missing)}; add what is missing")


def _scaling(
    parameters: Mapping[str, Any],
    config: Mapping[str, Any],
    method: Method,
    max_position: int,
    source: str,
    notes: list[str],
) -> RopeScaling:
    if method == "none":
        return RopeScaling()
    values: dict[str, Any] = {
        PARAMETER_OF_KEY[k]: _typed(k, v, source)
        for k, v in parameters.items()
        if k in PARAMETER_OF_KEY and v is not None
    }
    if config.get("original_max_position_embeddings") is not None:  # outside wins, as in transformers
        outside = _integer(config, "original_max_position_embeddings", source)
        if values.get("original_context", outside) != outside:
            notes.append(
                f"original_max_position_embeddings is {outside} at the top level and "
                f"{values['original_context']} in the rope parameters; the top level wins"
            )
        values["original_context"] = outside
    original = values.setdefault("original_context", max_position)
    if "factor" not in values:
        values["factor"] = max_position / original
    values["context"] = _context(method, values, max_position, notes)
    return RopeScaling(method=method, **values)


def _context(method: Method, values: Mapping[str, Any], max_position: int, notes: list[str]) -> int | None:
    """The context that the checkpoint claims. An author who wrote max_position_embeddings above the
    original context meant it; otherwise (vicuna, Qwen2.5) the factor tells, and this is ``None``."""
    original, factor = values["original_context"], values["factor"]
    if max_position <= original:
        return None
    if method in ("yarn", "longrope") and abs(max_position / original - factor) > 1e-6 * factor:
        notes.append(
            f"factor {factor:g} and max_position_embeddings / original context "
            f"{max_position / original:g} disagree; the factor makes the table"
        )
    return max_position


def _typed(key: str, value: Any, source: str) -> Any:
    if key == "truncate":
        if not isinstance(value, bool):
            raise RopeError(f"{source}: rope parameter {key} is {value!r}; it must be true or false")
        return value
    if key in ("short_factor", "long_factor"):
        if not isinstance(value, list) or not value:
            raise RopeError(f"{source}: rope parameter {key} must be a list of numbers")
        return tuple(_number(v, 0.0, key, source) for v in value)
    number = _number(value, 0.0, key, source)
    if key == "original_max_position_embeddings":
        if number != int(number) or number < 1:
            raise RopeError(f"{source}: {key} is {value!r}; it must be a whole number of tokens")
        return int(number)
    return number


def _base(parameters: Mapping[str, Any], config: Mapping[str, Any], source: str, notes: list[str]) -> float:
    inside, outside = parameters.get("rope_theta"), config.get("rope_theta")
    if inside is not None and outside is not None and inside != outside:
        notes.append(f"rope_theta is {outside} at the top level and {inside} in the rope parameters; "
                     "the inner one is used")  # fmt: skip
    return _number(inside if inside is not None else outside, 10000.0, "rope_theta", source)


def _head_dim(config: Mapping[str, Any], source: str) -> int:
    if config.get("head_dim") is not None:
        return _integer(config, "head_dim", source)
    return _integer(config, "hidden_size", source) // _integer(config, "num_attention_heads", source)


def _integer(config: Mapping[str, Any], key: str, source: str) -> int:
    value = config.get(key)
    if value is None:
        raise RopeError(f"{source}: {key} is missing; it must be a whole number above 0")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RopeError(f"{source}: {key} is {value!r}; it must be a whole number above 0")
    return value


def _number(value: Any, default: float, key: str, source: str) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RopeError(f"{source}: {key} is {value!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise RopeError(f"{source}: {key} is {str(value)[:20]}…; it is too large") from None
