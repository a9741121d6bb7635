"""What a GGUF file says of itself, from its header alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ggext.errors import RopeError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import effective_table, recipe_of, still_pairs_in_words
from ggext.gguf.shards import metadata_part, model_parts
from ggext.gguf.types import type_name
from ggext.llama_cpp_facts.indexer import unsaid_choice_in_words
from ggext.llama_cpp_facts.sliding import WINDOW
from ggext.rope import methods
from ggext.rope.capabilities import LEARNED_POSITIONS, capability_of, unrotated
from ggext.rope.compare import EXACT_GAIN
from ggext.rope.decode import LayerKind, decode_sliding, geometry_of, layer_kinds, rolls
from ggext.rope.keys import ROPE_FREQS, context_parameters, query_scale, stated_method
from ggext.rope.recipe import Recipe
from ggext.rope.scaling import RopeGeometry, RopeTable
from ggext.runtime.refusals import refusal

Treatment = Literal["kept", "blended", "interpolated"]
# Relative; float32 factors are off by 1e-7, methods change a frequency by far more.
_SAME = 1e-4


@dataclass(frozen=True)
class Pair:
    """One rotated pair: its ``wavelength`` in tokens, ``slowdown`` = unscaled / effective
    frequency."""

    index: int
    wavelength: float
    slowdown: float
    treatment: Treatment


@dataclass(frozen=True)
class Inspection:
    """What a header says. Contexts in tokens."""

    path: str
    name: str
    arch: str
    # Bytes, of all parts.
    size: int
    parameters: int
    types: Mapping[str, int]
    recipe: Recipe | None
    # The recipe's, or what the keys say.
    method: str
    trained_context: int
    context: int
    # The table at the file's own context; None where ggext cannot read the file's scaling.
    rope: RopeTable | None
    # Another one in a context that is made for no more than the trained length (LongRoPE).
    short_rope: RopeTable | None
    geometry: RopeGeometry | None
    # Why ``rope`` is None.
    rope_unknown: str = ""
    # Why the model does not rotate; empty where it does.
    unrotated: str = ""
    # why llama.cpp does not open the file, as far as a table tells; empty where it does
    unopened: str = ""
    # Whether the cached keys survive a context shift.
    shift_safe: bool = True
    # What ggext makes its contexts with for this file and other programs do not.
    context_parameters: Mapping[str, float] = field(default_factory=dict)
    #: Why some pairs never turn in a text, and what mends it; empty where all turn.
    still_pairs: str = ""
    # That llama.cpp goes by the context where the file does not say which layers choose the tokens
    # to attend to; empty where it says it.
    unsaid_choice: str = ""
    # How each layer rotates; all alike where it is empty.
    layers: tuple[LayerKind, ...] = ()
    # Tokens that sliding layers see; 0 where there are none.
    sliding_window: int = 0
    # Those layers' own table, where they have one.
    sliding_rope: RopeTable | None = None

    @property
    def pairs(self) -> list[Pair]:
        if self.rope is None or self.geometry is None:
            return []
        return compare_to_unscaled(self.rope, self.geometry)

    def as_dict(self) -> dict[str, Any]:
        recipe = self.recipe.as_dict() if self.recipe else None
        return {
            **asdict(self),
            "recipe": recipe,
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def inspect(path: Path) -> Inspection:
    """Raises ``GgufError`` for a damaged file; a scaling that ggext cannot read is reported, not
    raised."""
    gguf = read_gguf(metadata_part(path))
    parts = model_parts(gguf)
    tensors = [tensor for part in parts for tensor in part.tensors.values()]
    context = gguf.arch_keys().get("context_length", 0)
    window = gguf.arch_keys().get(WINDOW, 0)
    without = unrotated(gguf.arch, gguf.arch_keys())
    sliding_window = window if isinstance(window, int) else 0
    header = Inspection(
        path=str(gguf.path),
        name=str(gguf.get("general.name", "")),
        arch=gguf.arch,
        size=sum(part.size for part in parts),
        parameters=sum(math.prod(t.shape) for t in tensors),
        types=dict(Counter(type_name(t.type) for t in tensors).most_common()),
        recipe=None,
        method="unknown",
        trained_context=context,
        context=context,
        rope=None,
        short_rope=None,
        geometry=None,
        unopened=refusal(gguf.fields) or "",
        shift_safe=True,
        unsaid_choice=unsaid_choice_in_words(gguf.arch, gguf.arch_keys()),
        sliding_window=sliding_window,
    )
    if without:  # keys hold no position where attention falls with distance
        safe = gguf.arch not in LEARNED_POSITIONS
        return replace(header, rope_unknown=without, unrotated=without, shift_safe=safe)
    return _with_rope(header, gguf)


def _with_rope(known: Inspection, gguf: GgufFile) -> Inspection:
    """What the file says of RoPE, up to the first thing that ggext cannot read."""
    keys = gguf.arch_keys()
    try:
        recipe = recipe_of(gguf)
        known = replace(known, recipe=recipe)
        table = effective_table(gguf)
        known = replace(known, rope=table)
        if table.lengths is not None and table.lengths[0] > 1:
            known = replace(known, short_rope=effective_table(gguf, 1))
        geometry = recipe.geometry if recipe else geometry_of(keys, gguf.arch)
        known = replace(
            known, geometry=geometry, trained_context=geometry.trained_context
        )
        known = replace(known, shift_safe=_is_shift_safe(gguf, table, geometry))
        known = replace(known, context_parameters=context_parameters(keys))
        known = replace(known, still_pairs=still_pairs_in_words(gguf))
        layers = layer_kinds(keys, gguf.arch)
        known = replace(known, layers=layers)
        if "unscaled" in layers:
            known = replace(known, sliding_rope=decode_sliding(keys, gguf.arch))
    except RopeError as error:
        return replace(known, rope_unknown=str(error))
    return replace(known, method=_method(gguf, recipe))


def _is_shift_safe(gguf: GgufFile, table: RopeTable, geometry: RopeGeometry) -> bool:
    """Whether keys in the cache may be rotated again: by a gain of 1, and where llama.cpp does."""
    keys = gguf.arch_keys()
    capability = capability_of(gguf.arch, sectioned=geometry.sections is not None)
    gain = table.attention_factor / math.sqrt(query_scale(keys))
    return capability.is_never_shifted or (
        abs(gain - 1) <= EXACT_GAIN and rolls(keys, gguf.arch)
    )


def _method(gguf: GgufFile, recipe: Recipe | None) -> str:
    if recipe is not None:
        return recipe.scaling.method
    if ROPE_FREQS in gguf.tensors:
        return "frequency factors"
    return stated_method(gguf.arch_keys())[0]


def compare_to_unscaled(table: RopeTable, geometry: RopeGeometry) -> list[Pair]:
    """What became of each pair: kept, interpolated by the largest factor in the table, or in
    between."""
    unscaled = methods.theta(geometry)
    slowdowns = [
        t / w if w else math.inf for t, w in zip(unscaled, table.inv_freq, strict=True)
    ]
    most = max(slowdowns)
    return [
        Pair(i, wavelength, slowdown, _treatment(slowdown, most))
        for i, (wavelength, slowdown) in enumerate(
            zip(table.wavelengths, slowdowns, strict=True)
        )
    ]


def _treatment(slowdown: float, most: float) -> Treatment:
    if slowdown <= 1 + _SAME:
        return "kept"
    return "interpolated" if slowdown >= most * (1 - _SAME) else "blended"
