"""``config.json`` and the tokenizer of the checkpoint that a GGUF file was made of: for the
architectures whose files do not say all that a configuration needs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.config import Config, read_config
from ggext.converters import family_of
from ggext.errors import CheckpointError, GgufError, RopeError
from ggext.proof.reference import rope_parameters
from ggext.rope import methods
from ggext.rope.families import text_part

if TYPE_CHECKING:
    from ggext.convert.model_source import ModelSource
    from ggext.converters.base import Family
    from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

#: What says how the original's weights were packed; those that are written are floats.
_PACKING = ("quantization_config", "quantization", "compression_config")
_TYPES = ("dtype", "torch_dtype")
#: Keys that a scaling changes.
_EXTENDED = ("context_length",)
_TOKENIZER = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "merges.txt tokenizer.model chat_template.jinja chat_template.json generation_config.json "
    "tekken.json"
).split()
_CLOSE = 1e-5  # of numbers that a file has in float32


def original_values(folder: Path, source: ModelSource, dtype: str) -> dict[str, Any]:
    """The content of ``config.json`` in ``folder``, with the file's own scaling and ``dtype``.
    Raises ``GgextError`` where it is of another model than the file."""
    config = read_config(folder)
    values = copy.deepcopy(dict(config.values))
    text = text_part(values)
    for part in (values, text) if isinstance(text, dict) else (values,):
        for key in (*_PACKING, *_TYPES):
            part.pop(key, None)
        part["dtype"] = dtype
    family = family_of(Config(values, config.source))
    _check_same_model(family, source, config.source)
    if source.unrotated or _has_scaling(family, source):
        return values
    return _with_scaling(values, source, config.source)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has any of a tokenizer's main files."""
    main = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
    return any((folder / name).is_file() for name in main)


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copies the original's tokenizer and what goes with it."""
    for name in _TOKENIZER:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def _check_same_model(family: Family, source: ModelSource, where: str) -> None:
    if family.arch != source.arch:
        raise GgufError(
            f"{source.path} is of the architecture {source.arch}, and {where} is converted to "
            f"{family.arch}: name the folder of its own original"
        )
    for key, value in family.metadata().items():
        field = source.fields.get(f"{source.arch}.{key}")
        if field is not None and key not in _EXTENDED and not _same(field.value, value):
            raise GgufError(
                f"{source.path} has {source.arch}.{key} {field.value!r:.60}, and {where} says "
                f"{value!r:.60}: name the folder of its own original"
            )


def _same(actual: Any, expected: Any) -> bool:
    if isinstance(actual, Sequence) and not isinstance(actual, str):
        others = (
            expected if isinstance(expected, Sequence) else [expected] * len(actual)
        )
        return len(others) == len(actual) and all(map(_same, actual, others))
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        return all(_same(actual, value) for value in expected)
    if isinstance(actual, float) or isinstance(expected, float):
        return bool(abs(actual - expected) <= _CLOSE * max(abs(actual), abs(expected)))
    return bool(actual == expected)


def _has_scaling(family: Family, source: ModelSource) -> bool:
    """Whether the configuration has the file's scaling already."""
    rope = family.rope()
    if rope.problem or source.problem or source.scaling is None:
        return False
    ours = _tables(source.scaling, source.geometry)
    return all(map(_alike, ours, _tables(rope.scaling, rope.geometry)))


def _tables(scaling: RopeScaling, geometry: RopeGeometry) -> list[RopeTable | None]:
    sliding = methods.sliding_table(scaling, geometry)
    return [*methods.make_tables(scaling, geometry), sliding]


def _alike(one: RopeTable | None, other: RopeTable | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.context == other.context
        and _same(one.attention_factor, other.attention_factor)
        and _same(one.inv_freq, other.inv_freq)
    )


def _with_scaling(
    values: dict[str, Any], source: ModelSource, where: str
) -> dict[str, Any]:
    """With the file's scaling in place of the configuration's own."""
    text = text_part(values)
    part = text if isinstance(text, dict) else values
    why = source.problem or "it has frequency factors of an unknown method"
    if source.scaling is not None and not source.problem:
        stated = part.pop("rope_scaling", None) or part.get("rope_parameters") or {}
        own = rope_parameters(source.scaling, source.geometry)
        part["rope_parameters"] = _merged(stated, own)
        part["max_position_embeddings"] = methods.extended_context(
            source.scaling, source.geometry
        )
        why = "config.json cannot say its scaling"
        try:
            if _has_scaling(family_of(Config(values, where)), source):
                return values
        except (CheckpointError, RopeError) as error:
            why = str(error)
    raise GgufError(
        f"{source.path}: {why}; take the scaling out first: ggext convert {source.path} OUT "
        "--rope none --original-context N"
    )


def _merged(stated: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a scaling says, and of what was stated all that is about sections and parts of a head;
    by layer kind where either is."""
    if not (_by_kind(stated) or _by_kind(own)):
        kept = ("partial_rotary_factor", "mrope_section", "mrope_interleaved")
        return {key: stated[key] for key in kept if key in stated} | dict(own)
    kinds = stated if _by_kind(stated) else own
    return {
        kind: _merged(_of_kind(stated, kind), _of_kind(own, kind)) for kind in kinds
    }


def _by_kind(values: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in values.values())


def _of_kind(values: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """What is said of one layer kind; all, where nothing is said by kind."""
    of_kind: Mapping[str, Any] = values.get(kind, {}) if _by_kind(values) else values
    return of_kind
