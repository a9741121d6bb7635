"""A Hugging Face ``config.json`` → what it says about RoPE.

Both spellings occur, ``rope_scaling`` (older) and ``rope_parameters`` (newer, with ``rope_theta``
inside). The judge is transformers: what it computes from the same file is what we must compute, and
what it would silently ignore is an error here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from ggext.errors import RopeError
from ggext.rope import methods
from ggext.rope.families import ALL, FAMILY_RULES, FULL, SLIDING, FamilyRule
from ggext.rope.scaling import Layout, Method, RopeGeometry, RopeScaling

_METHOD_OF_TYPE: dict[str, Method] = {
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

#: What transformers' function for a type reads; another key in the file would be ignored by it.
_KEYS_OF_METHOD: dict[Method, frozenset[str]] = {
    "none": frozenset(),
    "ntk": frozenset({"factor", "original_max_position_embeddings"}),
    "proportional": frozenset({"factor", "partial_rotary_factor"}),
    "linear": frozenset({"factor", "original_max_position_embeddings"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "truncate",
            "mscale",
            "mscale_all_dim",
        }
    ),
    "longrope": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "short_factor",
            "long_factor",
        }
    ),
    "llama3": frozenset(
        {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
    ),
}
_REQUIRED_KEYS: dict[Method, tuple[str, ...]] = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "linear": ("factor",),
    "dynamic": ("factor",),
}
#: Keys that say who made the file and change no number.
_INFORMATIVE_KEYS = frozenset(
    {"type", "rope_type", "rope_theta", "partial_rotary_factor", "finetuned"}
)


@dataclass(frozen=True)
class CheckpointRope:
    """``scaling`` and ``geometry`` as the checkpoint means them; ``notes``: one line for each thing
    that a reader of the file might take otherwise."""

    scaling: RopeScaling
    geometry: RopeGeometry
    notes: tuple[str, ...] = ()


def read_rope(
    config: Mapping[str, Any], layout: Layout, source: str = "config.json"
) -> CheckpointRope:
    """RoPE of a model in which one kind of layer is scaled; where the sliding-window layers have a
    table of their own, the geometry says their base.

    ``config``: the parsed ``config.json``. Raises ``RopeError`` naming the key, its value and what
    would be accepted.
    """
    ropes = read_ropes(config, layout, source)
    _, rule, _ = _text_part(config)
    if len(ropes) == 1 and (ALL in ropes or rule.unrotated):
        return next(iter(ropes.values()))
    if set(ropes) != {FULL, SLIDING} or not rule.scaled_kind:
        raise RopeError(
            f"{source}: the rope parameters have separate settings for {', '.join(ropes)}; this "
            "architecture is "
            "converted with one RoPE table for all layers"
        )
    full, sliding = ropes[FULL], ropes[SLIDING]
    alike = (full.geometry.n_rot, full.geometry.head_dim) == (
        sliding.geometry.n_rot,
        sliding.geometry.head_dim,
    )
    if sliding.scaling.method != "none" or not alike:
        raise RopeError(
            f"{source}: the {SLIDING} layers rotate {sliding.geometry.n_rot} of "
            f"{sliding.geometry.head_dim} dimensions "
            f"with {sliding.scaling.method} scaling; llama.cpp rotates them as many as in the "
            "others, without scaling"
        )
    return replace(full, geometry=replace(full.geometry, sliding_base=sliding.geometry.base))


def read_ropes(
    config: Mapping[str, Any], layout: Layout, source: str = "config.json"
) -> dict[str, CheckpointRope]:
    """RoPE of each kind of layer that rotates: ``all``, or ``full_attention`` and
    ``sliding_attention``.

    The text part is read where the file has parts. Raises ``RopeError`` as ``read_rope`` does.
    """
    config, rule, model_type = _text_part(config)
    values = {**rule.defaults, **{k: v for k, v in config.items() if v is not None}}
    reader = _Reader(values, rule, layout, source)
    notes = (
        []
        if not rule.read_as
        else [
            (
                f"transformers does not know model_type {model_type!r}; it is read as "
                f"{rule.read_as}, which its own code copies"
            )
        ]
    )
    parameters = _parameters(values, source)
    kinds = _by_kind(parameters, values, source)
    if kinds:
        return {
            kind: reader.read(kind, inner, [*notes], nested=True) for kind, inner in kinds.items()
        }
    if rule.scaled_kind:
        return {
            kind: reader.read(kind, parameters if kind == rule.scaled_kind else {}, [*notes])
            for kind in (FULL, SLIDING)
        }
    if rule.unrotated and values.get("sliding_window"):
        notes.append(f"layers of the kind {', '.join(rule.unrotated)} do not rotate")
        return {SLIDING: reader.read(SLIDING, parameters, notes)}
    return {ALL: reader.read(ALL, parameters, notes)}


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], FamilyRule, str]:
    """The part of the file that concerns text, the rule of its family, and its model_type."""
    text = config.get("text_config")
    model_type = config.get("model_type", "")
    if isinstance(text, Mapping):
        config, model_type = text, text.get("model_type", model_type)
    return config, FAMILY_RULES.get(str(model_type), FamilyRule()), str(model_type)


@dataclass(frozen=True)
class _Reader:
    config: Mapping[str, Any]
    rule: FamilyRule
    layout: Layout
    source: str

    def read(
        self, kind: str, parameters: Mapping[str, Any], notes: list[str], *, nested: bool = False
    ) -> CheckpointRope:
        given = parameters
        parameters = self._without_inert(_without_sections(parameters))
        method = _method(parameters, self.source)
        if method == "dynamic" and self.rule.static_alpha and parameters.get("alpha") is not None:
            method = "ntk"
            parameters = {k: v for k, v in parameters.items() if k != "alpha"} | {
                "factor": parameters["alpha"]
            }
        _refuse_unknown_keys(parameters, method, self.source)
        if self.rule.scaled_kind and parameters.get("truncate") is False:
            raise RopeError(
                f"{self.source}: truncate is false, and transformers ignores that where kinds of "
                "layers have rope "
                "parameters of their own; remove it"
            )
        max_position = _integer(self.config, "max_position_embeddings", self.source)
        outside = None if nested else self.config.get("original_max_position_embeddings")
        scaling = _scaling(parameters, outside, method, max_position, self.source, notes)
        if self.rule.final_maximum and method != "none":
            scaling = replace(scaling, context=max_position)
        head_dim = self._head_dim(kind)
        outer = self.config.get(self.rule.partial_key)
        if outer is None and self.config.get(self.rule.rotated_key) is not None:
            outer = _integer(self.config, self.rule.rotated_key, self.source) / head_dim
        partial = _number(
            parameters.get("partial_rotary_factor", outer), 1.0, self.rule.partial_key, self.source
        )
        if not 0 < partial <= 1:
            raise RopeError(
                f"{self.source}: partial_rotary_factor is {partial:g}; it must be above 0 and at "
                "most 1"
            )
        n_rot = head_dim if method == "proportional" else int(head_dim * partial)
        geometry = RopeGeometry(
            n_rot=n_rot,
            head_dim=head_dim,
            base=self._base(kind, parameters, notes),
            layout=self.layout,
            trained_context=scaling.original_context or max_position,
            sections=self._sections(given, n_rot, notes),
        )
        methods.check_geometry(geometry)
        return CheckpointRope(scaling, geometry, tuple(notes))

    def _without_inert(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        inert = self.rule.inert
        parameters = {k: v for k, v in parameters.items() if k not in self.rule.beside}
        if self.rule.static_alpha and parameters.get("alpha") is None:
            return parameters
        return {k: v for k, v in parameters.items() if k not in inert or v not in inert[k]}

    def _sections(
        self, parameters: Mapping[str, Any], n_rot: int, notes: list[str]
    ) -> tuple[int, ...] | None:
        """M-RoPE: each section of the pairs turns with another coordinate of an image's patch. In a
        text all coordinates are the position, so the table is the one of the method itself."""
        given = parameters.get("mrope_section", self.rule.sections)
        if given is None:
            return None
        whole = isinstance(given, (list, tuple)) and all(type(n) is int and n >= 0 for n in given)
        if not whole or len(given) != 3 or sum(given) != n_rot // 2:
            raise RopeError(
                f"{self.source}: mrope_section is {given!r}; it must be three whole numbers that "
                f"add to {n_rot // 2}"
            )
        notes.append(
            f"mrope_section {list(given)}: the table holds for text; images turn each section by a "
            "coordinate"
        )
        return tuple(given)

    def _head_dim(self, kind: str) -> int:
        key = self.rule.head_dim_keys.get(kind, "head_dim")
        if self.config.get(key) is not None:
            return _integer(self.config, key, self.source)
        heads = _integer(self.config, "num_attention_heads", self.source)
        return _integer(self.config, "hidden_size", self.source) // heads

    def _base(self, kind: str, parameters: Mapping[str, Any], notes: list[str]) -> float:
        key = self.rule.base_keys.get(kind, "rope_theta")
        inside, outside = parameters.get("rope_theta"), self.config.get(key)
        if inside is not None and outside is not None and inside != outside:
            notes.append(
                f"{key} is {outside} at the top level and {inside} in the rope parameters; "
                "the inner one is used"
            )
        default = self.rule.base_defaults.get(kind, 10000.0)
        return _number(inside if inside is not None else outside, default, key, self.source)


def _without_sections(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The rope parameters without M-RoPE's own; its type ``mrope`` is, for text, no scaling."""
    return {
        key: "default" if key in ("type", "rope_type") and value == "mrope" else value
        for key, value in parameters.items()
        if key not in ("mrope_section", "mrope_interleaved")
    }


def _parameters(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The one dict of RoPE parameters, whichever spelling it stands under; empty when there is
    none."""
    found = {k: config[k] for k in ("rope_parameters", "rope_scaling") if config.get(k) is not None}
    for key, value in found.items():
        if not isinstance(value, Mapping):
            raise RopeError(f"{source}: {key} is {value!r}; it must be an object or null")
    if len(found) == 2 and found["rope_parameters"] != found["rope_scaling"]:
        raise RopeError(
            f"{source}: rope_parameters and rope_scaling are both there and differ; remove the "
            "wrong one"
        )
    return cast(Mapping[str, Any], next(iter(found.values()), {}))


def _by_kind(
    parameters: Mapping[str, Any], config: Mapping[str, Any], source: str
) -> dict[str, Mapping[str, Any]]:
    """Layer kind → its parameters where they are nested, without the kinds that are null (they do
    not rotate)."""
    nested = {k: v for k, v in parameters.items() if isinstance(v, Mapping)}
    if not nested:
        return {}
    layer_types = config.get("layer_types")
    known = {FULL, SLIDING} | {
        k for k in (layer_types if isinstance(layer_types, list) else []) if isinstance(k, str)
    }
    left_over = sorted(k for k, v in parameters.items() if k not in known and v is not None)
    if left_over:
        raise RopeError(
            f"{source}: beside the settings of {', '.join(nested)} stands {', '.join(left_over)}, "
            "which no kind of "
            f"layer is; the kinds are {', '.join(sorted(known))}"
        )
    return nested


def _method(parameters: Mapping[str, Any], source: str) -> Method:
    names = {parameters[k] for k in ("rope_type", "type") if isinstance(parameters.get(k), str)}
    wrong = [
        parameters[k] for k in ("rope_type", "type") if not isinstance(parameters.get(k, ""), str)
    ]
    if wrong:
        raise RopeError(f"{source}: the rope type is {wrong[0]!r}; it must be a string")
    methods = {_METHOD_OF_TYPE.get(n) for n in names} or {"none"}
    if None in methods:
        unknown = ", ".join(sorted(n for n in names if n not in _METHOD_OF_TYPE))
        raise RopeError(
            f"{source}: rope type {unknown!r} is unknown; known: {', '.join(_METHOD_OF_TYPE)}"
        )
    if len(methods) > 1:
        raise RopeError(
            f"{source}: rope_type and type name different methods: {', '.join(sorted(names))}"
        )
    if not names and parameters.get("factor") is not None:
        raise RopeError(f"{source}: rope parameters with a factor but no rope_type; add one")
    return cast(Method, methods.pop())


def _refuse_unknown_keys(parameters: Mapping[str, Any], method: Method, source: str) -> None:
    given = {k for k, v in parameters.items() if v is not None}
    left_over = sorted(given - _KEYS_OF_METHOD[method] - _INFORMATIVE_KEYS)
    if left_over:
        raise RopeError(
            f"{source}: rope type {method} does not use {', '.join(left_over)}; remove what is not "
            "meant"
        )
    missing = [k for k in _REQUIRED_KEYS.get(method, ()) if parameters.get(k) is None]
    if missing:
        raise RopeError(
            f"{source}: rope type {method} needs {', '.join(missing)}; add what is missing"
        )


def _scaling(
    parameters: Mapping[str, Any],
    outside: Any,
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
        if k in _KEYS_OF_METHOD[method] and v is not None
    }
    if outside is not None:  # it wins, as in transformers
        outside = _integer(
            {"original_max_position_embeddings": outside},
            "original_max_position_embeddings",
            source,
        )
        if values.get("original_context", outside) != outside:
            notes.append(
                f"original_max_position_embeddings is {outside} at the top level and "
                f"{values['original_context']} in the rope parameters; the top level wins"
            )
        values["original_context"] = outside
    if method == "dynamic" and values.get("original_context", max_position) != max_position:
        notes.append(
            f"dynamic starts from max_position_embeddings {max_position}, not from the original "
            "context"
        )
        values["original_context"] = max_position
    original = values.setdefault("original_context", max_position)
    if "factor" not in values:
        values["factor"] = 1.0 if method == "proportional" else max_position / original
    values["context"] = _context(method, values, max_position, notes)
    return RopeScaling(method=method, **values)


def _context(
    method: Method, values: Mapping[str, Any], max_position: int, notes: list[str]
) -> int | None:
    """The context that the checkpoint claims. An author who wrote max_position_embeddings above the
    original context meant it; otherwise (vicuna, Qwen2.5) the factor tells, and this is
    ``None``."""
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
            raise RopeError(
                f"{source}: rope parameter {key} is {value!r}; it must be true or false"
            )
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
