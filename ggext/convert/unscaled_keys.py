"""What an unscaled GGUF file said of RoPE before its first scaling. It is kept in the file, so that
taking the scaling out again gives the same keys: which of them a file has differs from converter to
converter."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ggext.errors import GgufError, RopeError
from ggext.gguf.types import Field, ValueType
from ggext.llama_cpp_facts import compressed
from ggext.rope.compare import compare
from ggext.rope.decode import decode
from ggext.rope.encoding import SCALING_KEYS
from ggext.rope.recipe import RECIPE_KEY
from ggext.rope.scaling import RopeTable

BEFORE_KEY = "ggext.before"


def touched_keys(arch: str) -> set[str]:
    """Every key that a scaling writes or takes away, but for the one that remembers them."""
    own = (
        *SCALING_KEYS,
        "context_length",
        "rope.dimension_count",
        "rope.freq_base",
        compressed.BASE,
    )
    return {f"{arch}.{key}" for key in own} | {RECIPE_KEY}


def remembered(fields: Mapping[str, Field], arch: str) -> Field:
    """The key that keeps them: of each its GGUF type and its value."""
    present = {key: fields[key] for key in sorted(touched_keys(arch)) if key in fields}
    kept = {
        key: (field.type, field.value)
        for key, field in present.items()
        if field.type is not ValueType.ARRAY
    }
    return Field.of(json.dumps(kept, separators=(",", ":")))


def as_before(
    fields: Mapping[str, Field], arch: str, unscaled: RopeTable
) -> dict[str, Field] | None:
    """``fields`` with the keys that it had before, ``None`` where none are kept or where llama.cpp
    would make another table than ``unscaled`` of them. Raises ``RopeError`` for a key that is
    malformed."""
    if BEFORE_KEY not in fields:
        return None
    touched = touched_keys(arch)
    try:
        values = json.loads(fields[BEFORE_KEY].value)
        before = {
            key: Field(ValueType(kind), value) for key, (kind, value) in values.items()
        }
        for key, field in before.items():
            if key not in touched or field.type is ValueType.ARRAY:
                raise ValueError(f"{key} is not for it to say")
            field.packed()  # the value fits the type
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        GgufError,
    ) as error:
        raise RopeError(
            f"{BEFORE_KEY} in the file is malformed ({error}); bake the file's source instead"
        ) from None
    result = {
        key: field
        for key, field in fields.items()
        if key not in touched and key != BEFORE_KEY
    } | before
    prefix = f"{arch}."
    keys = {
        key.removeprefix(prefix): field.value
        for key, field in result.items()
        if key.startswith(prefix)
    }
    return result if compare(unscaled, decode(keys, {}, arch)).is_exact else None
