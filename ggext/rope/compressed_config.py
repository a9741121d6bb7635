"""RoPE in a ``config.json`` of DeepSeek 4, as transformers' class completes it: layers with
compressed tokens rotate by one set of parameters, those with a window alone by another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggext.errors import RopeError
from ggext.rope.config_keys import integer
from ggext.rope.families import FULL, KIND_NAMES, SLIDING

_COMPRESS_BASE, _MAIN_BASE = 160000.0, 10000.0
_HEAD = 512
_SHARE = 64 / _HEAD
_ORIGINAL = "original_max_position_embeddings"
#: What the result has under the kinds of layers alone.
_READ = (
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "compress_rope_theta",
    "partial_rotary_factor",
    "qk_rope_head_dim",
    _ORIGINAL,
)


def with_parameters_by_kind(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``config`` with its rope parameters under the names of kinds of layers. Raises ``RopeError``
    for parameters that transformers cannot run."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise RopeError(
            f"{source}: the rope parameters are {given!r:.40}, not an object"
        )
    names = KIND_NAMES["deepseek_v4"]
    nested = {kind: given.get(name) for kind, name in names.items()}
    if all(isinstance(values, Mapping) for values in nested.values()):
        kinds = {kind: _nested(nested[kind], kind, source) for kind in names}
    else:
        kinds = _flat(config, given, source)
    kept = {key: value for key, value in config.items() if key not in _READ}
    return kept | {"rope_parameters": kinds}


def _nested(given: Any, kind: str, source: str) -> dict[str, Any]:
    if given.get("rope_theta") is None:
        raise RopeError(
            f"{source}: the rope parameters of {KIND_NAMES['deepseek_v4'][kind]} have no "
            "rope_theta, which transformers does not fill in; write it there"
        )
    return {"partial_rotary_factor": 1.0, **given}


def _flat(
    config: Mapping[str, Any], given: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """One set of parameters is a scaling of the layers with compressed tokens. Its gain is 1 unless
    it is said, whatever YaRN's own would be."""
    scaling = {
        key: value
        for key, value in given.items()
        if key not in KIND_NAMES["deepseek_v4"].values()
    }
    share = _rotated_share(config, source)
    compress = scaling | {
        "rope_theta": _or(config.get("compress_rope_theta"), _COMPRESS_BASE),
        "partial_rotary_factor": share,
    }
    kind = compress.get("rope_type") or compress.get("type")
    if kind == "yarn":
        compress.setdefault("attention_factor", 1.0)
    if kind not in (None, "default") and config.get(_ORIGINAL) is not None:
        compress[_ORIGINAL] = config[_ORIGINAL]
    main = {
        "rope_type": "default",
        "rope_theta": _or(config.get("rope_theta"), _MAIN_BASE),
        "partial_rotary_factor": share,
    }
    return {FULL: compress, SLIDING: main}


def _rotated_share(config: Mapping[str, Any], source: str) -> Any:
    """Of a head's dimensions."""
    given = config.get("partial_rotary_factor")
    if given is not None or config.get("qk_rope_head_dim") is None:
        return _or(given, _SHARE)
    head = _or(config.get("head_dim"), _HEAD)
    return integer(config, "qk_rope_head_dim", source) / integer(
        {"head_dim": head}, "head_dim", source
    )


def _or(value: Any, default: float) -> Any:
    return default if value is None else value
