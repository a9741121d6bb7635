"""A source with a scaling in it: its metadata and tensors, as far as RoPE concerns them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ggext.convert.choose import choose_encoding
from ggext.convert.fold import fold_query
from ggext.convert.header_only import check_weights_stay
from ggext.convert.model_source import ModelSource, SourceTensor
from ggext.convert.unscaled_keys import BEFORE_KEY, as_before, remembered
from ggext.gguf.types import Field
from ggext.rope import methods
from ggext.rope.encoding import SCALING_KEYS, SCALING_TENSORS, Encoding, EncodingName
from ggext.rope.recipe import RECIPE_KEY, SEARCH, Recipe, Searched
from ggext.rope.scaling import RopeGeometry, RopeScaling


@dataclass(frozen=True)
class Scaled:
    """What will be written of a source, before any tensor changes its type."""

    fields: Mapping[str, Field]
    tensors: Sequence[SourceTensor]
    geometry: RopeGeometry
    # None where a GGUF file keeps its RoPE keys as they are.
    encoding: Encoding | None = None
    # Why a gain stays in the keys, where the request named no encoding; a sentence without its end.
    why_not_folded: str = ""
    # Lines for the user.
    notes: tuple[str, ...] = ()


def unscaled(source: ModelSource) -> Scaled:
    """The source as it is."""
    return Scaled(dict(source.fields), list(source.tensors), source.geometry)


def with_scaling(
    source: ModelSource,
    scaling: RopeScaling,
    named: EncodingName | None,
    asked_by: str,
    searched: Searched | None,
    *,
    in_place: bool,
) -> Scaled:
    """The source with a scaling in place of its own. ``named``: the form that was asked for.
    ``asked_by`` and ``searched``: see ``Recipe``. Raises ``RopeError``."""
    trained = methods.original_context(scaling, source.geometry)
    geometry = replace(source.geometry, trained_context=trained)
    choice = choose_encoding(scaling, geometry, source, named, in_place=in_place)
    encoding = choice.encoding
    plain = [t for t in source.tensors if t.name not in SCALING_TENSORS]
    tensors = _with_query_scale(plain, source, encoding)
    if in_place:
        changed = [t for t in tensors if t.row_scale is not None]
        check_weights_stay(source.path, changed, was_folded=source.query_scale != 1.0)
    recipe = Recipe(scaling, geometry, encoding.name, asked_by)
    if searched is not None:
        recipe = replace(recipe, source=SEARCH, searched=searched)
    return Scaled(
        _with_rope(source, encoding, recipe),
        tensors,
        geometry,
        encoding,
        choice.why_not_folded,
        _notes(source, encoding, named),
    )


def _notes(
    source: ModelSource, encoding: Encoding, named: EncodingName | None
) -> tuple[str, ...]:
    notes = []
    if named in ("folded", "runtime") and encoding.name != named:
        notes.append(
            f"there is nothing for encoding={named!r} to do: {encoding.name} says it all"
        )
    if source.query_scale != 1.0:
        notes.append(
            "the gain folded into the source's query weights is taken out again (÷ "
            f"{source.query_scale:.6g})"
        )
    return tuple(notes)


def _with_rope(
    source: ModelSource, encoding: Encoding, recipe: Recipe
) -> dict[str, Field]:
    """The source's fields with every trace of an earlier scaling gone and the new one in its place.
    Where nothing is asked for but no scaling, a file gets back what it said before its first
    one."""
    fields = source.fields
    arch = source.arch
    before = (
        as_before(fields, arch, recipe.table())
        if recipe.scaling == RopeScaling()
        else None
    )
    if before is not None:
        return before
    stale = {f"{arch}.{key}" for key in SCALING_KEYS} | {RECIPE_KEY}
    kept = {key: value for key, value in fields.items() if key not in stale}
    new = {f"{arch}.{key}": Field.of(value) for key, value in encoding.keys.items()}
    new[RECIPE_KEY] = Field.of(json.dumps(recipe.as_dict(), separators=(",", ":")))
    if (
        source.is_unscaled_gguf
        and recipe.scaling.method != "none"
        and BEFORE_KEY not in kept
    ):
        new[BEFORE_KEY] = remembered(fields, arch)
    return kept | new


def _with_query_scale(
    tensors: list[SourceTensor], source: ModelSource, encoding: Encoding
) -> list[SourceTensor]:
    """The query weights with the new gain in them in place of the one that is folded there
    already."""
    if encoding.query_scale == source.query_scale:
        return tensors
    prefix = source.arch + "."
    keys = {
        k.removeprefix(prefix): f.value
        for k, f in source.fields.items()
        if k.startswith(prefix)
    }
    return fold_query(
        tensors,
        source.arch,
        source.geometry,
        keys,
        encoding.query_scale / source.query_scale,
    )
