"""A Hugging Face ``config.json`` → what it says about RoPE.

Both spellings occur, ``rope_scaling`` (older) and ``rope_parameters`` (newer, with ``rope_theta``
inside). The judge is transformers: what it computes from the same file is what we must compute,
and what it silently ignores is a note. What concerns the scaling alone and cannot be taken stands
in ``CheckpointRope.problem``: a scaling that replaces it need not understand it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggext.errors import RopeError
from ggext.rope.compressed_config import with_parameters_by_kind
from ggext.rope.config_parameters import by_kind, chosen_parameters
from ggext.rope.config_reader import CheckpointRope, RopeReader
from ggext.rope.families import (
    ALL,
    FAMILY_RULES,
    FULL,
    KIND_NAMES,
    SLIDING,
    FamilyRule,
    text_part,
)
from ggext.rope.scaling import Layout

#: A base of some layers alone, outside the rope parameters (MiMo 2, DeepSeek 4, Gemma 3).
_OTHER_BASES = ("swa_rope_theta", "compress_rope_theta")
#: What stands outside the rope parameters of a plain family.
_OUTER = ("rope_theta", "partial_rotary_factor", "swa_rope_theta")
_OUTER_MEANING = (
    ("rope_theta", FULL, "rope_theta"),
    ("swa_rope_theta", SLIDING, "rope_theta"),
    ("partial_rotary_factor", FULL, "partial_rotary_factor"),
)


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
    full = ropes[FULL]
    sliding = ropes[SLIDING].understood()
    of_full = full.geometry
    of_sliding = sliding.geometry
    alike = (of_full.n_rot, of_full.head_dim) == (of_sliding.n_rot, of_sliding.head_dim)
    own = rule.own_heads or rule.own_share
    if sliding.scaling.method != "none" or not (alike or own):
        raise RopeError(
            f"{source}: the {SLIDING} layers rotate {sliding.geometry.n_rot} of "
            f"{sliding.geometry.head_dim} dimensions with {sliding.scaling.method} scaling; "
            "llama.cpp rotates them as many as in the others, without scaling"
        )
    turning = (
        of_full.n_rot // 2
        if rule.own_heads and of_full.turning is None
        else of_full.turning
    )
    sliding_head_dim = None if alike else of_sliding.head_dim
    sliding_n_rot = None if alike else of_sliding.n_rot
    geometry = replace(
        of_full,
        sliding_base=of_sliding.base,
        sliding_n_rot=sliding_n_rot,
        sliding_head_dim=sliding_head_dim,
        turning=turning,
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
    return chosen_parameters(values, rule, "config.json").values


def _read_by_kind(
    config: Mapping[str, Any], layout: Layout, source: str
) -> dict[str, CheckpointRope]:
    config, rule, model_type = _text_part(config)
    if model_type in KIND_NAMES:
        config = with_parameters_by_kind(config, source)
    values = {**rule.defaults, **{k: v for k, v in config.items() if v is not None}}
    outer = values
    if rule.nested_only:
        _refuse_flat(values, source)
        values = {key: value for key, value in values.items() if key not in _OUTER}
    reader = RopeReader(values, rule, layout, source)
    notes: list[str] = []
    if rule.read_as:
        notes.append(
            f"transformers does not know model_type {model_type!r}; it is read as {rule.read_as}, "
            "which its own code copies"
        )
    _refuse_other_bases(values, rule, source)
    chosen = chosen_parameters(values, rule, source)
    notes += chosen.notes
    kinds = by_kind(chosen.values, values, source)
    if rule.nested_only:
        _refuse_contradictions(outer, kinds, rule, source)
    if kinds or rule.scaled_kind:
        ropes = _read_nested(reader, kinds, chosen.problem)
    else:
        kind = ALL
        if rule.unrotated and values.get("sliding_window"):
            notes.append(
                f"layers of the kind {', '.join(rule.unrotated)} do not rotate"
            )
            kind = SLIDING
        ropes = {kind: reader.read(kind, chosen.values, problem=chosen.problem)}
    return {
        kind: replace(rope, notes=(*notes, *rope.notes)) for kind, rope in ropes.items()
    }


def _read_nested(
    reader: RopeReader, kinds: Mapping[str, Mapping[str, Any]], problem: str
) -> dict[str, CheckpointRope]:
    """``kinds``: the parameters of each kind of layer; empty where the file has none.
    ``problem``: what is wrong with the scaling of the kind that is scaled."""
    nested = bool(kinds)
    ropes: dict[str, CheckpointRope] = {}
    for kind, inner in (kinds or {FULL: {}, SLIDING: {}}).items():
        of_kind = problem if kind == reader.rule.scaled_kind else ""
        ropes[kind] = reader.read(kind, inner, nested=nested, problem=of_kind)
    return ropes


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


def _refuse_contradictions(
    outer: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, Any]],
    rule: FamilyRule,
    source: str,
) -> None:
    """Raises ``RopeError`` where keys outside the rope parameters, which the model's own code reads
    and transformers does not, say something else."""
    for key, kind, name in _OUTER_MEANING:
        taken = kinds.get(kind, {}).get(name)
        if name == "partial_rotary_factor" and taken is None:
            taken = rule.plain_share
        if outer.get(key) is not None and taken is not None and outer[key] != taken:
            raise RopeError(
                f"{source}: {key} is {outer[key]!r:.40}, which transformers does not read in this "
                f"family: it takes {taken!r:.40}; write it to the rope_parameters of {kind}"
            )


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], FamilyRule, str]:
    """The part of the file that concerns text, the rule of its family, and its model_type."""
    text = text_part(config)
    model_type = config.get("model_type", "")
    if text is not None:
        config = text
        model_type = text.get("model_type", model_type)
    return config, FAMILY_RULES.get(str(model_type), FamilyRule()), str(model_type)
