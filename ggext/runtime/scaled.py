"""Another RoPE scaling over a file that stays as it is: keys that llama.cpp takes in its place.

The keys are those that ``ggext convert`` would bake, and the table that they make is compared with
the requested one before anything is loaded; so what is tried here is what a baked file would be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggext.errors import RopeError
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import effective_table, factor_tensors, recipe_of
from ggext.gguf.types import Field
from ggext.rope import methods
from ggext.rope.compare import compare
from ggext.rope.decode import geometry_of
from ggext.rope.encode import encode
from ggext.rope.keys import BETA_FAST, BETA_SLOW, LOG_MULTIPLIER, query_scale
from ggext.rope.scaling import RopeGeometry, RopeScaling

#: Full keys of a file → values in their place.
Overrides = Mapping[str, str | int | float]
#: Keys of a scaling → the value with which llama.cpp computes as if they were absent.
_NEUTRAL: Mapping[str, float] = {
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
    BETA_FAST: methods.YARN_BETA_FAST,
    BETA_SLOW: methods.YARN_BETA_SLOW,
    LOG_MULTIPLIER: 0.0,
}


def unscaled_geometry(header: GgufFile) -> RopeGeometry:
    """The rotary side of the model before any scaling: the recipe's, where the file has one."""
    recipe = recipe_of(header)
    return recipe.geometry if recipe else geometry_of(header.arch_keys(), header.arch)


def scaling_overrides(header: GgufFile, scaling: RopeScaling) -> Overrides:
    """Full keys → values for `Model.open`, by which the file is run with `scaling`.

    Raises RopeError where the file's own scaling stands in tensors or weights that no key takes
    back, or where the new one needs a tensor: those are to be baked.
    """
    try:
        keys = _keys(header, scaling)
    except RopeError as error:
        raise RopeError(
            f"{header.path} cannot be run with {scaling.method} unbaked: {error}"
        ) from None
    overrides = {f"{header.arch}.{key}": value for key, value in keys.items()}
    expected = methods.make_table(scaling, unscaled_geometry(header))
    actual = effective_table(with_overrides(header, overrides), by_ggext=True)
    if not compare(expected, actual).is_exact:
        raise RopeError(
            f"{header.path} cannot be run with {scaling.method} unbaked: with llama.cpp's keys "
            "alone its table comes out otherwise; bake it with ggext convert"
        )
    return overrides


def with_overrides(header: GgufFile, overrides: Overrides) -> GgufFile:
    """The header as llama.cpp takes it with these keys in place of the file's."""
    fields = {key: Field.of(value) for key, value in overrides.items()}
    return replace(header, fields={**header.fields, **fields})


def _keys(header: GgufFile, scaling: RopeScaling) -> dict[str, Any]:
    if any(
        factor != 1 for values in factor_tensors(header).values() for factor in values
    ):
        raise RopeError("its own scaling stands in tensors, which no key switches off")
    geometry = unscaled_geometry(header)
    gain = methods.make_table(scaling, geometry).attention_factor
    folded = math.sqrt(query_scale(header.arch_keys()))
    if folded != 1:  # the query weights have a gain already
        scaling = replace(scaling, attention_factor=gain / folded)
    encoding = encode(scaling, geometry, header.arch)
    if encoding.tensors:
        raise RopeError(
            f"it needs {', '.join(encoding.tensors)}; bake it with ggext convert"
        )
    stale = {key: value for key, value in _NEUTRAL.items() if key in header.arch_keys()}
    return {**stale, **encoding.keys}
