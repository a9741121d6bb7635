"""The keys of the rope parameters in a ``config.json``: which of them a method reads, and their
values.

The judge is transformers: a key that it does not read changes nothing, and a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from ggext.errors import RopeError
from ggext.rope.scaling import Method

METHOD_OF_TYPE: dict[str, Method] = {
    "default": "none",
    "none": "none",
    "linear": "linear",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
    "llama3": "llama3",
    "proportional": "proportional",
}

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
    "partial_rotary_factor": "proportion",
}

_SCALED = frozenset({"factor", "original_max_position_embeddings"})
#: What transformers' function for a type reads; another key in the file is ignored by it.
KEYS_OF_METHOD: dict[Method, frozenset[str]] = {
    "none": frozenset(),
    "ntk": _SCALED,
    "proportional": frozenset({"factor", "partial_rotary_factor"}),
    "linear": _SCALED,
    "dynamic": _SCALED,
    "yarn": _SCALED
    | {
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
        "mscale",
        "mscale_all_dim",
    },
    "longrope": _SCALED | {"attention_factor", "short_factor", "long_factor"},
    "llama3": _SCALED | {"low_freq_factor", "high_freq_factor"},
}
_REQUIRED_KEYS: dict[Method, tuple[str, ...]] = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "linear": ("factor",),
    "dynamic": ("factor",),
}
#: Keys that say who made the file and change no number, and those that are read elsewhere.
_INFORMATIVE_KEYS = frozenset(
    {"type", "rope_type", "rope_theta", "partial_rotary_factor", "finetuned"}
)
#: What people write → the key that is read.
_MISSPELT = {"attn_factor": "attention_factor", "attn_scale": "attention_factor"}
_TYPE_KEYS = ("rope_type", "type")


def type_of(parameters: Mapping[str, Any], source: str) -> tuple[str, list[str]]:
    """The rope type that the parameters name, ``default`` where they name none, and notes."""
    given = {
        key: parameters[key] for key in _TYPE_KEYS if parameters.get(key) is not None
    }
    for value in given.values():
        if not isinstance(value, str):
            raise RopeError(
                f"{source}: the rope type is {value!r}; it must be a string"
            )
    names = list(given.values())
    notes: list[str] = []
    if len(names) == 2 and METHOD_OF_TYPE.get(names[0]) != METHOD_OF_TYPE.get(names[1]):
        notes.append(
            f"rope_type is {names[0]} and type is {names[1]}; rope_type is taken, as transformers "
            "does"
        )
    return (names[0] if names else "default"), notes


def method_of(name: str, source: str) -> Method:
    """Raises ``RopeError`` for a rope type that is not known."""
    if name not in METHOD_OF_TYPE:
        raise RopeError(
            f"{source}: rope type {name!r} is unknown; known: {', '.join(METHOD_OF_TYPE)}"
        )
    return METHOD_OF_TYPE[name]


def check_keys(
    parameters: Mapping[str, Any],
    name: str,
    method: Method,
    source: str,
) -> list[str]:
    """A note on each key that the rope type ``name`` does not read. Raises ``RopeError`` where one
    is missing that it cannot do without."""
    given = {key for key, value in parameters.items() if value is not None}
    missing = [key for key in _REQUIRED_KEYS.get(method, ()) if key not in given]
    if missing:
        raise RopeError(
            f"{source}: rope type {name} needs {', '.join(missing)}; add what is missing"
        )
    left_over = sorted(given - KEYS_OF_METHOD[method] - _INFORMATIVE_KEYS)
    if (
        method == "none" and parameters.get("factor") == 1
    ):  # which scales nothing either way
        left_over.remove("factor")
    return [_unread(key, parameters[key], name, method) for key in left_over]


def _unread(key: str, value: Any, name: str, method: Method) -> str:
    hint = ""
    if _MISSPELT.get(key) in KEYS_OF_METHOD[method]:
        hint = f" (the key that it reads is {_MISSPELT[key]})"
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return (
        f"the rope parameters have {key} {shown}, which transformers does not read with the "
        f"rope type {name}{hint}: it changes nothing"
    )


def without_sections(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The rope parameters without M-RoPE's own; its type ``mrope`` is, for text, no scaling."""
    has_sections = "mrope_section" in parameters
    return {
        key: "default"
        if has_sections and key in _TYPE_KEYS and value == "mrope"
        else value
        for key, value in parameters.items()
        if key not in ("mrope_section", "mrope_interleaved")
    }


def same_meaning(
    first: Mapping[str, Any], second: Mapping[str, Any], config: Mapping[str, Any]
) -> bool:
    """Whether two spellings of the rope parameters in ``config`` say the same."""
    return _meaning(first, config) == _meaning(second, config)


def _meaning(
    parameters: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    name = parameters.get("rope_type") or parameters.get("type") or "default"
    method = METHOD_OF_TYPE.get(name) if isinstance(name, str) else None
    outside = {
        "rope_theta": config.get("rope_theta"),
        "original_max_position_embeddings": config.get(
            "original_max_position_embeddings", config.get("max_position_embeddings")
        ),
        "partial_rotary_factor": config.get("partial_rotary_factor"),
    }
    stated = {key: value for key, value in parameters.items() if value is not None}
    if method is not None:
        read = KEYS_OF_METHOD[method] | outside.keys()
        stated = {key: value for key, value in stated.items() if key in read}
        outside = {key: value for key, value in outside.items() if value is not None}
    return {**outside, **stated, "type": method or name}


def typed(key: str, value: Any, source: str) -> Any:
    """The value of one key, as the parameter that it stands for. Raises ``RopeError``."""
    if key == "truncate":
        if not isinstance(value, bool):
            raise RopeError(
                f"{source}: rope parameter {key} is {value!r}; it must be true or false"
            )
        return value
    if key in ("short_factor", "long_factor"):
        if not isinstance(value, list) or not value:
            raise RopeError(f"{source}: rope parameter {key} must be a list of numbers")
        return tuple(number(v, 0.0, key, source) for v in value)
    plain = number(value, 0.0, key, source)
    if key == "original_max_position_embeddings":
        if not (math.isfinite(plain) and plain >= 1 and plain == int(plain)):
            raise RopeError(
                f"{source}: {key} is {value!r}; it must be a whole number of tokens"
            )
        return int(plain)
    return plain


def integer(config: Mapping[str, Any], key: str, source: str) -> int:
    """Raises ``RopeError`` unless it is a whole number above 0."""
    value = config.get(key)
    if value is None:
        raise RopeError(
            f"{source}: {key} is missing; it must be a whole number above 0"
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RopeError(
            f"{source}: {key} is {value!r}; it must be a whole number above 0"
        )
    return value


def number(value: Any, default: float, key: str, source: str) -> float:
    """Raises ``RopeError`` unless it is a number that fits a float."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RopeError(f"{source}: {key} is {value!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise RopeError(
            f"{source}: {key} is {str(value)[:20]}…; it is too large"
        ) from None


def as_mapping(value: Any, key: str, source: str) -> Mapping[str, Any]:
    """Raises ``RopeError`` unless it is an object."""
    if not isinstance(value, Mapping):
        raise RopeError(
            f"{source}: {key} is {value!r:.60}; it must be an object or null"
        )
    return cast(Mapping[str, Any], value)
