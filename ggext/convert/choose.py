"""In which encoding a scaling is written where the request does not name one.

The simplest one is exact, and YaRN's gain in its keys is applied again to the cached keys by every
program that rolls its context. So the gain is folded into the query weights wherever that costs
nothing that matters: into their norms in float32, or into weights that are written anyway. Where it
is not, ``Choice.why_not_folded`` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggext.convert.fold import is_query_norm, query_tensors
from ggext.convert.model_source import ModelSource
from ggext.errors import RopeError
from ggext.gguf.types import BF16, F16, F32, type_name
from ggext.rope.encode import encode
from ggext.rope.encoding import Encoding, EncodingName
from ggext.rope.scaling import RopeGeometry, RopeScaling
from ggext.rope.shifts import folding_obstacle, turned_wrongly

_FLOATS = (F32, F16, BF16)


@dataclass(frozen=True)
class Choice:
    """An encoding, and what became of the gain."""

    encoding: Encoding
    # A sentence without its end; empty where the gain is folded, or there is none.
    why_not_folded: str = ""


def choose_encoding(
    scaling: RopeScaling,
    geometry: RopeGeometry,
    source: ModelSource,
    requested: EncodingName | None,
    *,
    in_place: bool,
) -> Choice:
    """``asked`` as it is, else the simplest encoding that survives context shifts, else the
    simplest. Raises ``RopeError`` where no encoding is exact enough."""
    simplest = encode(scaling, geometry, source.arch, requested)
    if requested is not None or simplest.shift_safe:
        return Choice(simplest)
    obstacle = (
        folding_obstacle(source.arch, geometry)
        or turned_wrongly(source.arch)
        or _obstacle_in_weights(source, in_place=in_place)
    )
    if obstacle:
        return Choice(simplest, obstacle)
    return Choice(encode(scaling, geometry, source.arch, "folded"))


def _obstacle_in_weights(source: ModelSource, *, in_place: bool) -> str:
    """Why the queries of this very model are not scaled; empty where nothing speaks against it."""
    try:
        queries = query_tensors(source.tensors, source.arch, _keys(source))
    except RopeError as error:
        parts = source.fields.get("split.count")
        if in_place and parts is not None and parts.value > 1:
            return (
                "the model is in several parts, and only the first is changed in place"
            )
        return str(error)
    if all(is_query_norm(tensor) and tensor.type == F32 for tensor in queries):
        return ""
    if in_place:
        return "a change in place leaves the query weights as they are"
    # a file whose query weights were scaled before is scaled once more in either case
    kinds = {tensor.type for tensor in queries} - set(_FLOATS)
    if source.is_gguf and kinds and source.query_scale == 1.0:
        names = ", ".join(sorted(type_name(kind) for kind in kinds))
        return f"the query weights are {names} already and stay as they are"
    return ""


def _keys(source: ModelSource) -> Mapping[str, Any]:
    prefix = source.arch + "."
    return {
        name.removeprefix(prefix): field.value
        for name, field in source.fields.items()
        if name.startswith(prefix)
    }
