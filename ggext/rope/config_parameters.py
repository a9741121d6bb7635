"""Which of the rope parameters in a ``config.json`` count, as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggext.errors import RopeError
from ggext.rope.config_keys import as_mapping, same_meaning
from ggext.rope.families import FULL, SLIDING, FamilyRule

_SPELLINGS = (
    "rope_scaling",
    "rope_parameters",
)  # transformers takes the first that is there


@dataclass(frozen=True)
class ChosenParameters:
    """The rope parameters that count."""

    values: Mapping[str, Any]
    # What is wrong with the scaling that they state.
    problem: str = ""
    # A line for each thing in the file that does not count.
    notes: tuple[str, ...] = ()


def without_attention_factor(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` whose rope parameters state no attention factor, in either spelling and at
    any depth."""

    def cleared(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: cleared(value) if isinstance(value, Mapping) else value
            for key, value in values.items()
            if key != "attention_factor"
        }

    holders = (*_SPELLINGS, "text_config")
    return {
        key: cleared(value) if key in holders and isinstance(value, Mapping) else value
        for key, value in config.items()
    }


def chosen_parameters(
    config: Mapping[str, Any], rule: FamilyRule, source: str
) -> ChosenParameters:
    """The one dict of RoPE parameters, whichever spelling it stands under; empty where there is
    none."""
    try:
        given = {
            key: as_mapping(config[key], key, source)
            for key in _SPELLINGS
            if config.get(key) is not None
        }
    except RopeError as error:
        return ChosenParameters({}, str(error))
    if not given.get("rope_scaling"):  # an empty one counts as none
        given.pop("rope_scaling", None)
    if rule.scaled_kind and given:
        return _merged(given, rule.scaled_kind, source)
    if not given and rule.default_parameters:
        note = f"config.json says nothing of RoPE: {rule.default_said}, as transformers does"
        return ChosenParameters(rule.default_parameters, notes=(note,))
    if len(given) < 2:
        return ChosenParameters(next(iter(given.values()), {}))
    scaling, parameters = (given[key] for key in _SPELLINGS)
    if same_meaning(scaling, parameters, config):
        return ChosenParameters(parameters)
    note = (
        "rope_scaling and rope_parameters are both there and differ: rope_scaling is taken, as "
        f"transformers does, and rope_parameters {dict(parameters)!r:.200} is not"
    )
    return ChosenParameters(scaling, notes=(note,))


def _merged(
    given: dict[str, Mapping[str, Any]], scaled_kind: str, source: str
) -> ChosenParameters:
    """As ``chosen_parameters``, where un-nested ``rope_scaling`` concerns one kind of layer: what
    it says goes over what the nested ``rope_parameters`` say of that kind."""
    scaling, parameters = (given.get(key, {}) for key in _SPELLINGS)
    nested = {kind: parameters.get(kind) or {} for kind in (FULL, SLIDING)}
    if parameters and not any(
        isinstance(value, Mapping) for value in parameters.values()
    ):
        if scaling:
            problem = (
                f"{source}: rope_parameters has no settings of {scaled_kind} that rope_scaling "
                "could change; remove one of the two"
            )
            return ChosenParameters(nested, problem)
        note = (
            f"rope_parameters {dict(parameters)!r:.100} has no settings by kind of layer, which "
            "are all that transformers reads of it in this family: it changes nothing"
        )
        return ChosenParameters(nested, notes=(note,))
    usual = {} if parameters else {"rope_type": "default"}
    full = {**usual, **as_mapping(nested[scaled_kind], scaled_kind, source), **scaling}
    notes: tuple[str, ...] = ()
    if parameters and scaling and full != nested[scaled_kind]:
        note = (
            f"rope_scaling and rope_parameters are both there and differ: of {scaled_kind} what "
            "rope_scaling says is taken, as transformers does"
        )
        notes = (note,)
    others = {k: v for k, v in parameters.items() if k not in nested}
    return ChosenParameters({**others, **nested, scaled_kind: full}, notes=notes)


def by_kind(
    parameters: Mapping[str, Any], config: Mapping[str, Any], source: str
) -> dict[str, Mapping[str, Any]]:
    """Layer kind → its parameters where they are nested, without the kinds that are null (they do
    not rotate)."""
    nested = {k: v for k, v in parameters.items() if isinstance(v, Mapping)}
    if not nested:
        return {}
    layer_types = config.get("layer_types")
    known = {FULL, SLIDING} | {
        k
        for k in (layer_types if isinstance(layer_types, list) else [])
        if isinstance(k, str)
    }
    left_over = sorted(
        k for k, v in parameters.items() if k not in known and v is not None
    )
    if left_over:
        raise RopeError(
            f"{source}: next to the settings of {', '.join(nested)} stands {', '.join(left_over)}, "
            f"which no kind of layer is; the kinds are {', '.join(sorted(known))}"
        )
    return nested
