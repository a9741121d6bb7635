"""Reads one set of rope parameters of a ``config.json``: the method, its numbers, the context."""

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
from ggext.rope.families import FamilyRule
from ggext.rope.scaling import Layout, Method, RopeGeometry, RopeScaling

_ORIGINAL = "original_max_position_embeddings"
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


@dataclass(frozen=True)
class RopeReader:
    config: Mapping[str, Any]
    rule: FamilyRule
    layout: Layout
    source: str

    def read(
        self,
        kind: str,
        parameters: Mapping[str, Any],
        *,
        nested: bool = False,
        problem: str = "",
    ) -> CheckpointRope:
        max_position = integer(self.config, "max_position_embeddings", self.source)
        outside = None if nested else self.config.get(_ORIGINAL)
        scaling = RopeScaling()
        notes: list[str] = []
        if not problem:
            try:
                scaling, notes = self._scaling(parameters, outside, max_position)
            except RopeError as error:
                problem = str(error)
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
        base, of_base = self._base(kind, parameters)
        sections, of_sections = self._sections(parameters, n_rot)
        geometry = RopeGeometry(
            n_rot=n_rot,
            head_dim=head_dim,
            base=base,
            layout=self.layout,
            trained_context=trained,
            sections=sections,
            turning=turning,
        )
        methods.check_geometry(geometry)
        notes += (*of_base, *of_sections)
        return CheckpointRope(scaling, geometry, tuple(notes), problem)

    def _sections(
        self, parameters: Mapping[str, Any], n_rot: int
    ) -> tuple[tuple[int, ...] | None, list[str]]:
        """M-RoPE: each section of the pairs turns with another coordinate of an image's patch. In a
        text all coordinates are the position, so the table is the one of the method itself."""
        given = parameters.get("mrope_section", self.rule.sections)
        if given is None:
            return None, []
        whole = isinstance(given, (list, tuple)) and all(
            type(n) is int and n >= 0 for n in given
        )
        if not whole or len(given) != 3 or sum(given) != n_rot // 2:
            raise RopeError(
                f"{self.source}: mrope_section is {given!r}; it must be three whole numbers that "
                f"add to {n_rot // 2}"
            )
        note = (
            f"mrope_section {list(given)}: the table holds for text; images turn each section by a "
            "coordinate"
        )
        return tuple(given), [note]

    def _rotated(self, parameters: Mapping[str, Any], head_dim: int) -> int:
        """How many dimensions of a head rotate."""
        outer = self.config.get(self.rule.partial_key)
        if outer is None and self.config.get(self.rule.rotated_key) is not None:
            outer = integer(self.config, self.rule.rotated_key, self.source) / head_dim
        given = parameters.get("partial_rotary_factor", outer)
        # Whatever it is: a scaling that is replaced need not be understood.
        name = parameters.get("rope_type") or parameters.get("type")
        if given is None and name in (None, "default"):
            given = self.rule.plain_share
        partial = number(given, 1.0, self.rule.partial_key, self.source)
        if self.rule.share_of and given is not None and math.isfinite(partial):
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
        proportional = (
            isinstance(name, str) and METHOD_OF_TYPE.get(name) == "proportional"
        )
        return head_dim if proportional else int(head_dim * partial)

    def _scaling(
        self, given: Mapping[str, Any], outside: Any, max_position: int
    ) -> tuple[RopeScaling, list[str]]:
        parameters = self._without_inert(without_sections(given))
        name, notes = type_of(parameters, self.source)
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
        notes += check_keys(parameters, name, method, self.source)
        if self.rule.scaled_kind and parameters.get("truncate") is False:
            notes.append(
                "truncate is false, which transformers does not read where kinds of layers have "
                "rope parameters of their own: it changes nothing"
            )
            parameters = {k: v for k, v in parameters.items() if k != "truncate"}
        if method == "none":
            return RopeScaling(), notes
        values, of_values = self._values(parameters, outside, method, max_position)
        context, of_context = _context(method, values, max_position, self.rule)
        notes += (*of_values, *of_context)
        return RopeScaling(method=method, **values | context), notes

    def _values(
        self,
        parameters: Mapping[str, Any],
        outside: Any,
        method: Method,
        max_position: int,
    ) -> tuple[dict[str, Any], list[str]]:
        """The method's parameters under our names, with those that transformers fills in."""
        notes: list[str] = []
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
        return values, notes

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
        self, kind: str, parameters: Mapping[str, Any]
    ) -> tuple[float, list[str]]:
        notes: list[str] = []
        key = self.rule.base_keys.get(kind, "rope_theta")
        inside = parameters.get("rope_theta")
        outside = self.config.get(key)
        if inside is not None and outside is not None and inside != outside:
            notes.append(
                f"{key} is {outside} at the top level and {inside} in the rope parameters; "
                "the inner one is used"
            )
        default = self.rule.base_defaults.get(kind, 10000.0)
        stated = outside if inside is None else inside
        return number(stated, default, key, self.source), notes


def _without_proportion(scaling: RopeScaling) -> RopeScaling:
    """What proportional RoPE does to the pairs that turn: nothing, or position interpolation."""
    if scaling.factor in (None, 1.0):
        return RopeScaling()
    return replace(scaling, method="linear", proportion=None)


def _context(
    method: Method, values: Mapping[str, Any], claimed: int, rule: FamilyRule
) -> tuple[dict[str, Any], list[str]]:
    """The context that the checkpoint is meant for, checked against factor · original context.

    ``claimed``: max_position_embeddings. At most the original context it says nothing (vicuna,
    Qwen 2.5), between the two it is the default of the unextended model (Qwen 3 has 40,960 with
    an original context of 32,768): then the factor tells. Where it is right and less than the
    factor reaches, the result says why.
    """
    original = values["original_context"]
    factor = values["factor"]
    if not math.isfinite(factor * original):  # refused where the table is made
        return {}, []
    reach = int(factor * original + 1e-6)
    if rule.final_maximum:
        reason = "its family's max_position_embeddings is the extended one"
        return _short_of(reach, claimed, reason), []
    if claimed <= original:
        return {}, []
    ratio = claimed / original
    if method == "longrope":
        reason = "LongRoPE's factors are for max_position_embeddings"
        disagrees = abs(ratio - factor) > 1e-6 * factor
        notes = [_disagreement(factor, ratio)] if disagrees else []
        return _short_of(reach, claimed, reason), notes
    if method not in GROWING:
        return {"context": claimed}, []
    if claimed < reach * (1 - 1e-6):
        note = (
            f"max_position_embeddings {claimed:,} is the length before the extension: the context "
            f"is factor × original context, {factor:g} × {original:,} = {reach:,} tokens"
        )
        return {}, [note]
    disagrees = claimed > reach * (1 + 1e-6)
    return {"context": claimed}, [_disagreement(factor, ratio)] if disagrees else []


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
