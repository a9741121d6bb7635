"""What a file without a recipe is held to: what its own keys mean, and what the model's authors
publish.

A key that is in the file was meant, whether llama.cpp reads it or not: YaRN's betas and its
attention factor are read for two architectures, and files of others have them all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import effective_table, factor_tensors
from ggext.proof.report import OWN_KEYS, Check, Expected
from ggext.rope import methods
from ggext.rope.compare import EXACT_FREQUENCY, EXACT_GAIN, compare
from ggext.rope.decode import geometry_of
from ggext.rope.keys import BETA_FAST, BETA_SLOW, stated_method
from ggext.rope.known import KnownModel, known_model
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

#: Parameter → the key that means it, whoever reads that.
_YARN = {
    "beta_fast": BETA_FAST,
    "beta_slow": BETA_SLOW,
    "attention_factor": "rope.scaling.yarn_attn_factor",
}


def expected_by_keys(gguf: GgufFile) -> Expected:
    """The table that the file's keys and tensors ask for."""
    keys = gguf.arch_keys()
    geometry = geometry_of(gguf.arch_keys(), gguf.arch)
    table = effective_table(gguf)
    method, factor = stated_method(keys)
    scaling = RopeScaling(context=table.context)
    if method == "linear":
        scaling = RopeScaling("linear", factor=factor, context=table.context)
    if method == "yarn":
        meant = {name: _meant(keys, key) for name, key in _YARN.items()}
        gain = meant["attention_factor"]
        attention_factor = table.attention_factor if gain is None else gain
        scaling = RopeScaling(
            "yarn",
            factor=factor,
            original_context=geometry.trained_context,
            context=table.context,
            beta_fast=meant["beta_fast"],
            beta_slow=meant["beta_slow"],
            attention_factor=attention_factor,
        )
        if any(value is not None for value in meant.values()) and not factor_tensors(
            gguf
        ):
            return Expected(scaling, geometry, OWN_KEYS)
    return Expected(scaling, geometry, OWN_KEYS, stated=table)


def _meant(keys: Mapping[str, Any], key: str) -> float | None:
    value = keys.get(key)
    return value if isinstance(value, float) else None


def check_published(
    gguf: GgufFile, effective: RopeTable, *, by_keys: bool
) -> tuple[list[Check], str]:
    """A check where the authors' scaling belongs to the model and the file has none at all, and a
    sentence on what they publish; nothing for a model that is not known. ``by_keys``: no one else
    says what the file is to be."""
    keys = gguf.arch_keys()
    row = known_model(gguf.arch, keys)
    if row is None:
        return [], ""
    geometry = replace(geometry_of(keys, gguf.arch), base=row.base)
    if _is(effective, row.own, geometry, row.context):
        return [], f"as the authors of {row.name} publish it ({_words(row.own)})"
    if row.extension is not None and _is(effective, row.extension, geometry, 0):
        return [], f"as the authors of {row.name} extend it ({_words(row.extension)})"
    is_scaled = stated_method(keys)[0] != "none" or bool(factor_tensors(gguf))
    if by_keys and row.own.method != "none" and not is_scaled:
        return [_missing(effective, row, geometry)], ""
    if not by_keys and row.extension is None:
        return [], ""
    words = _words(row.extension or row.own)
    return [], (
        f"the authors of {row.name} publish {words} ({row.source}); this file has a scaling of "
        "its own"
    )


def _missing(effective: RopeTable, row: KnownModel, geometry: RopeGeometry) -> Check:
    result = compare(_published_table(row.own, geometry, row.context), effective)
    return Check(
        "table",
        f"frequency error against {row.name}",
        result.frequency_error,
        EXACT_FREQUENCY,
        f"pair {result.worst_pair} of {len(effective.inv_freq)}",
        f"{row.name} is scaled by {_words(row.own)} ({row.source}), and this file is not: make it "
        f"again, or ggext convert it with --{row.own.method} {row.own.factor:g} --original-context "
        f"{row.own.original_context}",
    )


def _is(
    effective: RopeTable, scaling: RopeScaling, geometry: RopeGeometry, context: int
) -> bool:
    result = compare(_published_table(scaling, geometry, context), effective)
    return (
        result.frequency_error <= EXACT_FREQUENCY
        and result.gain_error <= 2 * EXACT_GAIN
    )


def _published_table(
    scaling: RopeScaling, geometry: RopeGeometry, context: int
) -> RopeTable:
    trained = scaling.original_context or context
    return methods.make_table(scaling, replace(geometry, trained_context=trained))


def _words(scaling: RopeScaling) -> str:
    if scaling.method == "none":
        return "no scaling"
    return (
        f"{scaling.method} ×{scaling.factor:g} of {scaling.original_context:,} tokens"
    )
