"""Opens what ``convert`` starts from: a Hugging Face checkpoint or a GGUF file, in one shape."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.config import Config, read_config
from ggext.checkpoint.float8 import believed_over, weights_of
from ggext.checkpoint.named import model_name, named_model
from ggext.checkpoint.vocabulary.room import vocabulary_room
from ggext.checkpoint.weights import read_before, read_stored
from ggext.convert.inputs import Inputs
from ggext.convert.model_source import MakeFields, ModelSource, SourceTensor
from ggext.convert.named_tensors import named_tensors
from ggext.convert.rules import map_tensors, taken_scalars
from ggext.converters import family_of
from ggext.errors import CheckpointError, GgufError, RopeError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import factor_tensors, recipe_of
from ggext.gguf.shards import metadata_part, model_parts
from ggext.gguf.split import SPLIT_KEYS
from ggext.gguf.types import Field
from ggext.llama_cpp_facts.indexer import TYPES, unsaid_choice
from ggext.rope import methods
from ggext.rope.capabilities import unrotated
from ggext.rope.compare import EXACT_GAIN
from ggext.rope.config_parameters import without_attention_factor
from ggext.rope.decode import decode, geometry_of, turning_pairs
from ggext.rope.encoders import still_factors
from ggext.rope.keys import (
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    count_of,
    query_scale,
    stated_method,
)
from ggext.rope.scaling import RopeGeometry, RopeScaling

if TYPE_CHECKING:
    from ggext.converters.base import Family


def check_family(
    folder: Path, *, replaced: bool = False, gain_replaced: bool = False
) -> None:
    """Raises ``CheckpointError`` for a checkpoint that ggext cannot convert, by its config alone.
    ``replaced``: another scaling is asked for than the checkpoint's own; ``gain_replaced``: another
    attention factor, so that the checkpoint's own need not be understood."""
    rope = family_of(_config(folder, gain_replaced)).rope()
    if not replaced:
        rope.understood()


def open_source(
    path: Path,
    *,
    one_part: bool = False,
    replaced: bool = False,
    gain_replaced: bool = False,
) -> ModelSource:
    """A folder is read as a checkpoint, a file as GGUF; ``demo`` is the embedded model.
    ``one_part``: the first of several files will do. The others: as in ``check_family``."""
    check = partial(check_family, replaced=replaced, gain_replaced=gain_replaced)
    path = named_model(path, check=check)
    if path.is_dir() and (
        (path / "config.json").is_file() or not any(path.glob("*.gguf"))
    ):
        inputs = Inputs.of(path)
        return replace(_from_checkpoint(path, gain_replaced), inputs=inputs)
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; give a Hugging Face model's folder, a .gguf file or a model's "
            "id such as "
            "Qwen/Qwen3-0.6B"
        )
    if path.suffix in (".safetensors", ".json", ".bin"):
        raise CheckpointError(
            f"{path} is one file of a checkpoint; give its folder {path.parent}"
        )
    first = metadata_part(path)
    inputs = Inputs.of(first)
    return replace(_from_gguf(first, one_part), inputs=inputs)


def _config(folder: Path, gain_replaced: bool) -> Config:
    config = read_config(folder)
    if not gain_replaced:
        return config
    return replace(config, values=without_attention_factor(config.values))


def _from_checkpoint(folder: Path, gain_replaced: bool) -> ModelSource:
    config = _config(folder, gain_replaced)
    family = family_of(config)
    rope = family.rope()
    notes = list(rope.notes)
    scalars, tensors, of_weights = _read_weights(folder, config, family)
    notes += of_weights
    values: dict[str, Any] = {
        "general.architecture": family.arch,
        "general.type": "model",
    }
    values |= {
        f"{family.arch}.{key}": value for key, value in family.metadata().items()
    }
    fields = {key: Field.of(value) for key, value in (values | scalars).items()}
    later: tuple[MakeFields, ...] = (partial(_described, folder, family.arch, tensors),)
    vocabulary = partial(_vocabulary, folder, family.vocab_size, family.merges_by_rank)
    room = None if family.merges_by_rank else vocabulary_room(folder, family.vocab_size)
    if room is None:
        made, of_vocabulary = vocabulary()
        fields |= made
        notes += of_vocabulary
    else:
        later += (vocabulary,)
    return ModelSource(
        folder,
        family.arch,
        fields,
        tensors,
        rope.geometry,
        rope.scaling,
        is_gguf=False,
        notes=notes,
        later=later,
        later_bytes=room or 0,
        problem=rope.problem,
    )


def _read_weights(
    folder: Path, config: Config, family: Family
) -> tuple[dict[str, list[float]], list[SourceTensor], list[str]]:
    """Metadata that the checkpoint keeps as tensors, the tensors under their GGUF names, and notes
    on these."""
    stored = read_stored(folder)
    notes = [*stored.notes]
    try:
        notes += believed_over(stored.by_name.values(), config)
        weights = weights_of(dict(stored.by_name), config)
        named, of_names = named_tensors(weights, family)
        notes += of_names
        scalars = taken_scalars(family.scalars(), named, config.source)
        tensors, left_out = map_tensors(
            family.tensors(), named, family.arch, config.source
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error}{read_before(folder)}") from None
    mapped = [
        SourceTensor(
            t.name,
            t.shape[::-1],
            t.type,
            t,
            t.rule.row_scale(math.prod(t.shape[:-1])),
        )
        for t in tensors
    ]
    return scalars, mapped, notes + left_out


def _described(
    folder: Path, arch: str, tensors: Sequence[SourceTensor]
) -> tuple[dict[str, Field], list[str]]:
    """What the model card and its folder say of the model, and notes on it."""
    from ggext.checkpoint.model_card import general_metadata

    shapes = [(t.name, t.shape[::-1]) for t in tensors]
    values, notes = general_metadata(folder, model_name(folder), arch, shapes)
    return {key: Field.of(value) for key, value in values.items()}, notes


def _vocabulary(
    folder: Path, vocab_size: int, by_rank: bool
) -> tuple[dict[str, Field], tuple[str, ...]]:
    from ggext.checkpoint.vocabulary.read import read_vocabulary

    vocabulary = read_vocabulary(folder, vocab_size, by_rank=by_rank)
    fields = {key: Field.of(value) for key, value in vocabulary.metadata().items()}
    return fields, vocabulary.notes


def _from_gguf(path: Path, one_part: bool) -> ModelSource:
    gguf = read_gguf(path)
    _check_is_model(gguf)
    if gguf.get("split.no", 0) != 0:
        number = gguf.get("split.no") + 1
        raise GgufError(
            f"{path} is part {number} of {gguf.get('split.count', 1)} and its name does not say "
            "so; give it its name back"
        )
    parts = [gguf] if one_part else model_parts(gguf)
    tensors = [
        SourceTensor(info.name, info.shape, info.type, part)
        for part in parts
        for info in part.tensors.values()
    ]
    scaling, geometry, problem = _of_gguf(gguf, {tensor.name for tensor in tensors})
    whole = len(parts) == 1
    one_file = gguf if whole else None
    defaults, notes = _unsaid(gguf)
    kept = {key: f for key, f in gguf.fields.items() if whole or key not in SPLIT_KEYS}
    return ModelSource(
        path,
        gguf.arch,
        kept | defaults,
        tensors,
        geometry,
        scaling,
        is_gguf=True,
        notes=notes,
        query_scale=query_scale(gguf.arch_keys()),
        gguf=one_file,
        problem=problem,
    )


def _unsaid(gguf: GgufFile) -> tuple[dict[str, Field], list[str]]:
    """What llama.cpp decides by the context of the file, so that another context changes it: said
    as it stands now."""
    choice = unsaid_choice(gguf.arch, gguf.arch_keys())
    if choice is None:
        return {}, []
    note = (
        f"{TYPES} is written as llama.cpp takes it now ({sum(choice)} of {len(choice)} layers "
        "choose tokens): where a file has none, it goes by the context"
    )
    return {f"{gguf.arch}.{TYPES}": Field.of(choice)}, [note]


#: ``general.type``, or the architecture, of a GGUF file that is no language model → what it is.
_NO_MODELS = {
    "adapter": "a LoRA adapter; merge it into its model (llama-export-lora), then convert that",
    "mmproj": "the part of a model that sees (mmproj), which is not scaled; name the text model",
    "clip": "the part of a model that sees (mmproj), which is not scaled; name the text model",
    "imatrix": "an importance matrix; give it as imatrix=FILE together with a model",
}


def _check_is_model(gguf: GgufFile) -> None:
    for kind in (gguf.get("general.type"), gguf.arch):
        if isinstance(kind, str) and kind in _NO_MODELS:
            raise GgufError(f"{gguf.path} is {_NO_MODELS[kind]}")


def _of_gguf(
    gguf: GgufFile, names: Collection[str]
) -> tuple[RopeScaling | None, RopeGeometry, str]:
    """A file's scaling (``None``: frequency factors of an unknown method), its geometry, and why
    the scaling cannot be read. ``names``: of the model's tensors."""
    if unrotated(gguf.arch, gguf.arch_keys()):
        context = count_of(gguf.arch_keys(), "context_length") or 1
        return RopeScaling(), RopeGeometry(0, 1, 1.0, "norm", context), ""
    problem = ""
    try:
        recipe = recipe_of(gguf)
        if recipe is not None:
            return recipe.scaling, recipe.geometry, ""
    except RopeError as error:
        problem = str(error)
    geometry = geometry_of(gguf.arch_keys(), gguf.arch)
    if ROPE_FREQS in names:
        geometry = replace(
            geometry, turning=turning_pairs(factor_tensors(gguf)[ROPE_FREQS])
        )
    try:
        scaling = _stated_scaling(gguf, geometry, names)
    except RopeError as error:
        scaling = RopeScaling()
        problem = problem or str(error)
    return (RopeScaling() if problem else scaling), geometry, problem


def _stated_scaling(
    gguf: GgufFile, geometry: RopeGeometry, names: Collection[str]
) -> RopeScaling | None:
    """What a file without a recipe says. ``None``: it holds frequency factors, of an unknown
    method."""
    if ROPE_FREQS in names and geometry.turning is None:
        return None
    keys = gguf.arch_keys()
    method, factor = stated_method(keys)
    if method == "longrope" or ROPE_LONG in names:  # phi3 loads them whatever the type
        return _stated_longrope(gguf, geometry)
    scaling = RopeScaling() if method == "none" else RopeScaling(method, factor=factor)
    gain = decode(keys, still_factors(geometry), gguf.arch).attention_factor
    usual = methods.make_table(scaling, geometry).attention_factor
    return (
        scaling
        if abs(gain / usual - 1) <= EXACT_GAIN
        else replace(scaling, attention_factor=gain)
    )


def _stated_longrope(gguf: GgufFile, geometry: RopeGeometry) -> RopeScaling:
    keys = gguf.arch_keys()
    tensors = factor_tensors(gguf)
    table = decode(keys, tensors, gguf.arch)
    return RopeScaling(
        "longrope",
        factor=max(1.0, table.context / geometry.trained_context),
        original_context=geometry.trained_context,
        context=table.context,
        attention_factor=table.attention_factor,
        short_factors=tuple(tensors.get(ROPE_SHORT, ())),
        long_factors=tuple(tensors.get(ROPE_LONG, ())),
    )
