"""Exports a GGUF file: weights, ``config.json``, tokenizer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from ggext.convert.fold import fold_query
from ggext.convert.model_source import ModelSource
from ggext.convert.sources import open_source
from ggext.errors import GgufError, MissingExtraError, OutputError
from ggext.export.configuration import config_values, family
from ggext.export.original import copy_tokenizer, has_tokenizer, original_values
from ggext.export.tokenizer import Vocabulary
from ggext.export.weights import (
    DTYPES,
    Made,
    inverted,
    prevailing_dtype,
    scalars,
    write,
)
from ggext.gguf.types import BF16, F16, F32, type_name
from ggext.gguf.writer import private_folder_beside
from ggext.rope.encoding import SCALING_TENSORS

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and where to."""

    # A GGUF file.
    model: Path
    # The folder to make.
    out: Path
    # float32, float16 or bfloat16; auto: the file's own, float32 for quantized ones.
    dtype: str = "auto"
    # The folder of the checkpoint that it was made of, of which config.json and the tokenizer are
    # taken; None: the file says all of it.
    original: Path | None = None


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    dtype: str
    parameters: int
    # Whether the tokenizer was held against llama.cpp's on a text: its tokens; None: it was not.
    tokens_compared: int | None
    notes: Sequence[str] = ()


def export(
    options: ExportOptions, progress: Callable[[int], None] = lambda _: None
) -> Exported:
    """Writes the checkpoint, whole or not at all. Raises a ``GgextError``."""
    source = open_source(options.model)
    if not source.is_gguf:
        raise GgufError(f"{options.model} is a checkpoint already; name a GGUF file")
    if options.out.exists():
        raise OutputError(f"{options.out} exists; name another folder")
    dtype = _dtype(options, source)
    notes = [*source.notes, *_lost(source), *_folded(source)]
    values = _config_values(source, dtype, options.original)
    source = _unfolded(source)
    read_by = family(values, source)
    of_weights, used = inverted(read_by, source.tensors, source.path)
    _check_all_used(source, used)
    tensors: list[Made] = [*of_weights, *scalars(read_by, source.fields, source.path)]
    write_tokenizer, made = _tokenizer_writer(source, options.original)
    with private_folder_beside(options.out) as beside:
        folder = beside / options.out.name
        folder.mkdir()
        _write_json(folder / "config.json", values)
        write_tokenizer(folder)
        compared, not_compared = _compare_tokens(folder, source.path, made=made)
        write(folder / _WEIGHTS, tensors, dtype, progress)
        shutil.move(folder, options.out)
    count = sum(math.prod(item.shape) for item in tensors)
    return Exported(options.out, dtype, count, compared, (*notes, *not_compared))


def _config_values(
    source: ModelSource, dtype: str, original: Path | None
) -> dict[str, Any]:
    if original is None:
        return config_values(source, dtype)
    return original_values(original, source, dtype)


def _tokenizer_writer(
    source: ModelSource, original: Path | None
) -> tuple[Callable[[Path], None], bool]:
    """What writes a tokenizer into a folder, and whether it is made: the original's is not. Raises
    ``GgufError`` for a vocabulary that is not known."""
    if original is not None and has_tokenizer(original):
        return partial(copy_tokenizer, original), False
    texts = {key: field.value for key, field in source.fields.items()}
    vocabulary = Vocabulary(texts, str(source.path))
    tokenizer = vocabulary.tokenizer()

    def write_made(folder: Path) -> None:
        _write_json(folder / "tokenizer.json", tokenizer, indent=None)
        _write_json(folder / "tokenizer_config.json", vocabulary.config())

    return write_made, True


def _lost(source: ModelSource) -> list[str]:
    """A note on what a quantized file no longer has."""
    quantized = sorted({t.type for t in source.tensors} - {F32, F16, BF16})
    if not quantized:
        return []
    names = ", ".join(map(type_name, quantized))
    note = (
        f"the file is quantized ({names}): the checkpoint has what its blocks stand for, and what "
        "they lost stays lost"
    )
    return [note]


def _folded(source: ModelSource) -> list[str]:
    """A note on a gain that ``_unfolded`` takes out."""
    if source.query_scale == 1.0:
        return []
    note = (
        f"the gain folded into the query weights is taken out again (÷ {source.query_scale:.6g}); "
        "config.json has it as the scaling's"
    )
    return [note]


def _dtype(options: ExportOptions, source: ModelSource) -> str:
    if options.dtype == "auto":
        return prevailing_dtype(source.tensors)
    if options.dtype not in DTYPES:
        raise GgufError(
            f"the type {options.dtype!r} is unknown; known: auto, {', '.join(DTYPES)}"
        )
    return options.dtype


def _unfolded(source: ModelSource) -> ModelSource:
    """Without the gain that is folded into the query weights, which config.json says instead."""
    if source.query_scale == 1.0:
        return source
    prefix = source.arch + "."
    keys = {
        key.removeprefix(prefix): field.value
        for key, field in source.fields.items()
        if key.startswith(prefix)
    }
    scaled = fold_query(
        source.tensors, source.arch, source.geometry, keys, 1 / source.query_scale
    )
    return replace(source, tensors=scaled)


def _check_all_used(source: ModelSource, used: set[str]) -> None:
    """Raises ``GgufError`` for a tensor that a checkpoint of the family has no place for."""
    known = used | set(SCALING_TENSORS)
    unused = sorted(
        tensor.name for tensor in source.tensors if tensor.name not in known
    )
    if unused:
        raise GgufError(
            f"{source.path}: {unused[0]} ({len(unused)} such) has no place in a checkpoint of its "
            "family: without it the model would be another"
        )


def _compare_tokens(
    folder: Path, path: Path, *, made: bool
) -> tuple[int | None, list[str]]:
    """Holds the tokenizer against llama.cpp's own on the embedded document: how many tokens were
    compared, ``None`` and a note where it cannot be done. Where they differ, a note says so of the
    original's, and what was ``made`` raises ``GgufError``."""
    if not (folder / "tokenizer.json").is_file():
        return None, ["the original has no tokenizer.json to hold against llama.cpp's"]
    text = (files("ggext") / "data" / "document.txt").read_text("utf-8")
    text += "\n  1234 don't — ÄÖß 漢字 🙂\n\n\tx = f(y);"
    try:
        from tokenizers import Tokenizer

        from ggext.runtime.model import Model

        with Model.open(path, 0) as model:
            expected = model.tokenize(text)
    except (ImportError, MissingExtraError) as error:
        return None, [f"the tokenizer is not held against llama.cpp's: {error}"]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    if ids != expected:
        place = next(
            (
                i
                for i, pair in enumerate(zip(ids, expected, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(ids), len(expected)),
        )
        difference = (
            f"differs from llama.cpp's on a sample, at token {place}: "
            f"{ids[place : place + 3]} and {expected[place : place + 3]}"
        )
        if not made:
            return None, [f"the original's tokenizer {difference}"]
        raise GgufError(
            f"{path}: the tokenizer that was made of its vocabulary {difference}; nothing was "
            "written"
        )
    return len(expected), []


def _write_json(path: Path, values: object, indent: int | None = 2) -> None:
    path.write_text(
        json.dumps(values, indent=indent, ensure_ascii=False) + "\n", "utf-8"
    )
