"""A Hugging Face ``config.json`` → what it says about RoPE.

Both spellings occur, ``rope_scaling`` (older) and ``rope_parameters`` (newer, with ``rope_theta``
inside). The judge is transformers: what it computes from the same file is what we must compute,
and what it silently ignores is a note. What concerns the scaling alone and cannot be taken stands
in ``CheckpointRope.problem``: a scaling that replaces it need not understand it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ggext.errors import RopeError
from ggext.rope import methods
from ggext.rope.config_keys import (
    KEYS_OF_METHOD,
    METHOD_OF_TYPE,
    PARAMETER_OF_KEY,
    check_keys,
    integer,
    method_of,
    number,
    type_of,
    typed,
    without_sections,
)
from ggext.rope.config_parameters import by_kind, chosen_parameters
from ggext.rope.families import ALL, FAMILY_RULES, FULL, SLIDING, FamilyRule, text_part
from ggext.rope.scaling import Layout, Method, RopeGeometry, RopeScaling

_ORIGINAL = "original_max_position_embeddings"
#: A base of some layers alone, outside the rope parameters (MiMo 2, DeepSeek 4, Gemma 3).
_OTHER_BASES = ("swa_rope_theta", "compress_rope_theta")
#: What stands outside the rope parameters of a plain family.
_OUTER = ("rope_theta", "partial_rotary_factor", "swa_rope_theta")
#: Methods whose factor is how many times the context grows. (Llama 3's is not: Llama 3.2 has 32
#: on 8192 and is meant for 131072. LongRoPE's makes the gain alone.)
GROWING: frozenset[Method] = frozenset({"yarn", "linear", "dynamic", "proportional"})


@dataclass(frozen=True)
class CheckpointRope:
    """RoPE as a checkpoint means it."""

    # no scaling where ``problem`` says why the file's cannot be taken
    scaling: RopeScaling
    geometry: RopeGeometry
    # a line for each thing that a reader of the file might take otherwise
    notes: tuple[str, ...] = ()
    # why the file's scaling cannot be read or run: no matter where another one replaces it
    problem: str = ""

    def understood(self) -> CheckpointRope:
        """The same, with a scaling that can be taken. Raises ``RopeError`` where it cannot."""
        if self.problem:
            raise RopeError(self.problem)
        return self

    def refused(self, problem: str) -> CheckpointRope:
        """The same without a scaling, for a reason that is not the file's; an earlier one stays."""
        return replace(self, scaling=RopeScaling(), problem=self.problem or problem)


def read_rope(
    config: Mapping[str, Any], layout: Layout, source: str = "config.json"
) -> CheckpointRope:
    """RoPE of a model in which one kind of layer is scaled; where the sliding-window layers have a
    table of their own, the geometry says their base.

    ``config``: the parsed ``config.json``. Raises ``RopeError`` naming the key, its value and what
    would be accepted.
    """
    return read_replaceable_rope(config, layout, source).understood()


def read_replaceable_rope(
    config: Mapping[str, Any], layout: Layout, source: str = "config.json"
) -> CheckpointRope:
    """As ``read_rope``, but what is wrong with the scaling alone is its ``problem``. Raises
    ``RopeError`` for what no scaling can do without."""
    ropes = _read_by_kind(config, layout, source)
    text, rule, _ = _text_part(config)
    if rule.own_share and SLIDING not in (text.get("layer_types") or [SLIDING]):
        ropes.pop(SLIDING, None)  # of which kind there is no layer
    if set(ropes) == {rule.scaled_kind}:
        return ropes[rule.scaled_kind]
    if len(ropes) == 1 and (ALL in ropes or rule.unrotated):
        return next(iter(ropes.values()))
    if set(ropes) != {FULL, SLIDING} or not rule.scaled_kind:
        raise RopeError(
            f"{source}: the rope parameters have separate settings for {', '.join(ropes)}; this "
            "architecture is converted with one RoPE table for all layers"
        )
    full, sliding = ropes[FULL], ropes[SLIDING].understood()
    of_full, of_sliding = full.geometry, sliding.geometry
    alike = (of_full.n_rot, of_full.head_dim) == (of_sliding.n_rot, of_sliding.head_dim)
    own = rule.own_heads or rule.own_share
    if sliding.scaling.method != "none" or not (alike or own):
        raise RopeError(
            f"{source}: the {SLIDING} layers rotate {sliding.geometry.n_rot} of "
            f"{sliding.geometry.head_dim} dimensions with {sliding.scaling.method} scaling; "
            "llama.cpp rotates them as many as in the others, without scaling"
        )
    geometry = replace(
        of_full,
        sliding_base=of_sliding.base,
        sliding_n_rot=None if alike else of_sliding.n_rot,
        sliding_head_dim=None if alike else of_sliding.head_dim,
        turning=of_full.n_rot // 2
        if rule.own_heads and of_full.turning is None
        else of_full.turning,
    )
    return replace(full, geometry=geometry)


def read_ropes(
    config: Mapping[str, Any], layout: Layout, source: str = "config.json"
) -> dict[str, CheckpointRope]:
    """RoPE of each kind of layer that rotates: ``all``, or ``full_attention`` and
    ``sliding_attention``.

    The text part is read where the file has parts. Raises ``RopeError`` as ``read_rope`` does.
    """
    ropes = _read_by_kind(config, layout, source)
    return {kind: rope.understood() for kind, rope in ropes.items()}


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rope parameters that count, as they are spelt; empty where there are none."""
    config, rule, _ = _text_part(config)
    values = {key: value for key, value in config.items() if value is not None}
    return chosen_parameters(values, rule, "config.json", [])[0]


def _read_by_kind(
    config: Mapping[str, Any], layout: Layout, source: str
) -> dict[str, CheckpointRope]:
    config, rule, model_type = _text_part(config)
    values = {**rule.defaults, **{k: v for k, v in config.items() if v is not None}}
    if rule.nested_only:
        _refuse_flat(values, source)
        values = {key: value for key, value in values.items() if key not in _OUTER}
    reader = _Reader(values, rule, layout, source)
    notes = []
    if rule.read_as:
        notes.append(
            f"transformers does not know model_type {model_type!r}; it is read as {rule.read_as}, "
            "which its own code copies"
        )
    _refuse_other_bases(values, rule, source)
    parameters, problem = chosen_parameters(values, rule, source, notes)
    kinds = by_kind(parameters, values, source)
    if kinds:
        scaled = rule.scaled_kind
        return {
            kind: reader.read(
                kind,
                inner,
                [*notes],
                nested=True,
                problem=problem if kind == scaled else "",
            )
            for kind, inner in kinds.items()
        }
    if rule.scaled_kind:
        plain = {kind: reader.read(kind, {}, [*notes]) for kind in (FULL, SLIDING)}
        return plain | {
            rule.scaled_kind: reader.read(rule.scaled_kind, {}, notes, problem=problem)
        }
    if rule.unrotated and values.get("sliding_window"):
        notes.append(f"layers of the kind {', '.join(rule.unrotated)} do not rotate")
        return {SLIDING: reader.read(SLIDING, parameters, notes, problem=problem)}
    return {ALL: reader.read(ALL, parameters, notes, problem=problem)}


def _refuse_other_bases(
    values: Mapping[str, Any], rule: FamilyRule, source: str
) -> None:
    """Raises ``RopeError`` for a second base that the family's rule does not read."""
    for key in _OTHER_BASES:
        if values.get(key) is not None and key not in rule.base_keys.values():
            raise RopeError(
                f"{source}: {key} is {values[key]!r}: some layers rotate by a base of their own, "
                "which is not read for this family yet"
            )


def _refuse_flat(values: Mapping[str, Any], source: str) -> None:
    """Raises ``RopeError`` for a scaling of a family that is read by kind of layer alone."""
    if values.get("rope_scaling"):
        raise RopeError(
            f"{source}: rope_scaling is {values['rope_scaling']!r:.60}; transformers reads "
            "rope_parameters of this family, by kind of layer: write it there"
        )


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], FamilyRule, str]:
    """The part of the file that concerns text, the rule of its family, and its model_type."""
    text = text_part(config)
    model_type = config.get("model_type", "")
    if text is not None:
        config = text
        model_type = text.get("model_type", model_type)
    return config, FAMILY_RULES.get(str(model_type), FamilyRule()), str(model_type)


@dataclass(frozen=True)
class _Reader:
    config: Mapping[str, Any]
    rule: FamilyRule
    layout: Layout
    source: str

    def read(
        self,
        kind: str,
        parameters: Mapping[str, Any],
        notes: list[str],
        *,
        nested: bool = False,
        problem: str = "",
    ) -> CheckpointRope:
        max_position = integer(self.config, "max_position_embeddings", self.source)
        outside = None if nested else self.config.get(_ORIGINAL)
        scaling = RopeScaling()
        said: list[str] = []
        if not problem:
            try:
                scaling = self._scaling(parameters, outside, max_position, said)
            except RopeError as error:
                problem = str(error)
        notes += [] if problem else said
        trained = scaling.original_context or max_position
        if (
            problem
        ):  # the scaling that replaces it starts from where this one would have
            trained = (
                _whole(outside) or _whole(parameters.get(_ORIGINAL)) or max_position
            )
        head_dim = self._head_dim(kind)
        n_rot = self._rotated(parameters, head_dim)
        turning = None
        if (
            scaling.method == "proportional"
        ):  # which pairs turn is the model's, not a scaling
            turning = int((scaling.proportion or 1.0) * head_dim // 2)
            scaling = _without_proportion(scaling)
        geometry = RopeGeometry(
            n_rot=n_rot,
            head_dim=head_dim,
            base=self._base(kind, parameters, notes),
            layout=self.layout,
            trained_context=trained,
            sections=self._sections(parameters, n_rot, notes),
            turning=turning,
        )
        methods.check_geometry(geometry)
        return CheckpointRope(scaling, geometry, tuple(notes), problem)

    def _sections(
        self, parameters: Mapping[str, Any], n_rot: int, notes: list[str]
    ) -> tuple[int, ...] | None:
        """M-RoPE: each section of the pairs turns with another coordinate of an image's patch. In a
        text all coordinates are the position, so the table is the one of the method itself."""
        given = parameters.get("mrope_section", self.rule.sections)
        if given is None:
            return None
        whole = isinstance(given, (list, tuple)) and all(
            type(n) is int and n >= 0 for n in given
        )
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

    def _rotated(self, parameters: Mapping[str, Any], head_dim: int) -> int:
        """How many dimensions of a head rotate."""
        outer = self.config.get(self.rule.partial_key)
        if outer is None and self.config.get(self.rule.rotated_key) is not None:
            outer = integer(self.config, self.rule.rotated_key, self.source) / head_dim
        given = parameters.get("partial_rotary_factor", outer)
        if given is None and type_of(parameters, self.source, []) == "default":
            given = self.rule.plain_share
        partial = number(given, 1.0, self.rule.partial_key, self.source)
        if self.rule.share_of and given is not None:
            parts = (
                self.rule.share_of
                if self.config.get("head_dim") is None
                else ("head_dim",)
            )
            whole = sum(integer(self.config, key, self.source) for key in parts)
            partial = int(whole * partial) / head_dim
        if not 0 < partial <= 1:
            raise RopeError(
                f"{self.source}: partial_rotary_factor is {partial:g}; it must be above 0 and at "
                "most 1"
            )
        name = parameters.get("rope_type") or parameters.get("type")
        proportional = (
            isinstance(name, str) and METHOD_OF_TYPE.get(name) == "proportional"
        )
        return head_dim if proportional else int(head_dim * partial)

    def _scaling(
        self,
        given: Mapping[str, Any],
        outside: Any,
        max_position: int,
        notes: list[str],
    ) -> RopeScaling:
        parameters = self._without_inert(without_sections(given))
        name = type_of(parameters, self.source, notes)
        name = self.rule.read_types.get(name, name)
        method = method_of(name, self.source)
        if (
            method == "dynamic"
            and self.rule.static_alpha
            and parameters.get("alpha") is not None
        ):
            method = "ntk"
            parameters = {k: v for k, v in parameters.items() if k != "alpha"} | {
                "factor": parameters["alpha"]
            }
        check_keys(parameters, name, method, self.source, notes)
        if self.rule.scaled_kind and parameters.get("truncate") is False:
            notes.append(
                "truncate is false, which transformers does not read where kinds of layers have "
                "rope parameters of their own: it changes nothing"
            )
            parameters = {k: v for k, v in parameters.items() if k != "truncate"}
        if method == "none":
            return RopeScaling()
        values = self._values(parameters, outside, method, max_position, notes)
        values |= _context(method, values, max_position, self.rule, notes)
        return RopeScaling(method=method, **values)

    def _values(
        self,
        parameters: Mapping[str, Any],
        outside: Any,
        method: Method,
        max_position: int,
        notes: list[str],
    ) -> dict[str, Any]:
        """The method's parameters under our names, with those that transformers fills in."""
        values: dict[str, Any] = {
            PARAMETER_OF_KEY[k]: typed(k, v, self.source)
            for k, v in parameters.items()
            if k in KEYS_OF_METHOD[method] and v is not None
        }
        if outside is not None:  # it wins, as in transformers
            outside = integer({_ORIGINAL: outside}, _ORIGINAL, self.source)
            if values.get("original_context", outside) != outside:
                notes.append(
                    f"original_max_position_embeddings is {outside} at the top level and "
                    f"{values['original_context']} in the rope parameters; the top level wins"
                )
            values["original_context"] = outside
        if (
            method == "dynamic"
            and values.get("original_context", max_position) != max_position
        ):
            notes.append(
                f"dynamic starts from max_position_embeddings {max_position}, not from the "
                "original context"
            )
            values["original_context"] = max_position
        original = values.setdefault("original_context", max_position)
        if "factor" not in values:
            values["factor"] = (
                1.0 if method == "proportional" else max_position / original
            )
        return values

    def _without_inert(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        inert = self.rule.inert
        parameters = {k: v for k, v in parameters.items() if k not in self.rule.beside}
        if self.rule.static_alpha and parameters.get("alpha") is None:
            return parameters
        return {
            k: v for k, v in parameters.items() if k not in inert or v not in inert[k]
        }

    def _head_dim(self, kind: str) -> int:
        key = self.rule.head_dim_keys.get(kind, "head_dim")
        if self.config.get(key) is not None:
            return integer(self.config, key, self.source)
        heads = integer(self.config, "num_attention_heads", self.source)
        return integer(self.config, "hidden_size", self.source) // heads

    def _base(
        self, kind: str, parameters: Mapping[str, Any], notes: list[str]
    ) -> float:
        key = self.rule.base_keys.get(kind, "rope_theta")
        inside, outside = parameters.get("rope_theta"), self.config.get(key)
        if inside is not None and outside is not None and inside != outside:
            notes.append(
                f"{key} is {outside} at the top level and {inside} in the rope parameters; "
                "the inner one is used"
            )
        default = self.rule.base_defaults.get(kind, 10000.0)
        return number(
            inside if inside is not None else outside, default, key, self.source
        )


def _without_proportion(scaling: RopeScaling) -> RopeScaling:
    """What proportional RoPE does to the pairs that turn: nothing, or position interpolation."""
    if scaling.factor in (None, 1.0):
        return RopeScaling()
    return replace(scaling, method="linear", proportion=None)


def _context(
    method: Method,
    values: Mapping[str, Any],
    claimed: int,
    rule: FamilyRule,
    notes: list[str],
) -> dict[str, Any]:
    """The context that the checkpoint is meant for, checked against factor · original context.

    ``claimed``: max_position_embeddings. At most the original context it says nothing (vicuna,
    Qwen 2.5), between the two it is the default of the unextended model (Qwen 3 has 40,960 with
    an original context of 32,768): then the factor tells. Where it is right and less than the
    factor reaches, the result says why.
    """
    original, factor = values["original_context"], values["factor"]
    if not math.isfinite(factor * original):  # refused where the table is made
        return {}
    reach = int(factor * original + 1e-6)
    if rule.final_maximum:
        return _short_of(
            reach, claimed, "its family's max_position_embeddings is the extended one"
        )
    if claimed <= original:
        return {}
    if method == "longrope":
        if abs(claimed / original - factor) > 1e-6 * factor:
            notes.append(_disagreement(factor, claimed / original))
        return _short_of(
            reach, claimed, "LongRoPE's factors are for max_position_embeddings"
        )
    if method not in GROWING:
        return {"context": claimed}
    if claimed < reach * (1 - 1e-6):
        notes.append(
            f"max_position_embeddings {claimed:,} is the length before the extension: the context "
            f"is factor × original context, {factor:g} × {original:,} = {reach:,} tokens"
        )
        return {}
    if claimed > reach * (1 + 1e-6):
        notes.append(_disagreement(factor, claimed / original))
    return {"context": claimed}


def _short_of(reach: int, claimed: int, reason: str) -> dict[str, Any]:
    return {"context": claimed} | (
        {"context_reason": reason} if claimed < reach else {}
    )


def _disagreement(factor: float, ratio: float) -> str:
    return (
        f"factor {factor:g} and max_position_embeddings / original context {ratio:g} disagree; the "
        "factor makes the table"
    )


def _whole(value: Any) -> int | None:
    """``value`` as a number of tokens, ``None`` where it is none."""
    return value if type(value) is int and value > 0 else None
