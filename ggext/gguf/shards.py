"""A model in several files: ``NAME-00001-of-00003.gguf``. The first part holds the metadata;
llama.cpp opens it and finds the others by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ggext.errors import GgufError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.split import part_path

_PART = re.compile(r"(?P<prefix>.*)-\d{5}-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def metadata_part(path: Path) -> Path:
    """The file that holds a model's metadata: ``path`` itself, the first part where it is another
    one, and for a folder the model in it. Raises ``GgufError`` for a folder with none or several,
    and for a missing first part."""
    if path.is_dir():
        return _only_model(path)
    match = _PART.fullmatch(path.name)
    if match is None:
        return path
    first = part_path(path.with_name(match["prefix"]), 0, int(match["count"]))
    if first != path and not first.exists():
        raise GgufError(
            f"{first} is not there, which holds the metadata of {path.name}; put the parts into "
            "one folder"
        )
    return first


def model_stem(path: Path) -> str:
    """The name of a model without its number among several and its ending."""
    match = _PART.fullmatch(path.name)
    return match["prefix"] if match else path.stem


def all_parts(first: Path) -> list[Path]:
    """Every part of the model whose metadata is in ``first``, as they should be there."""
    match = _PART.fullmatch(first.name)
    if match is None:
        return [first]
    count = int(match["count"])
    return [
        part_path(first.with_name(match["prefix"]), number, count)
        for number in range(count)
    ]


def model_parts(first: GgufFile) -> list[GgufFile]:
    """The headers of all parts of a model, ``first`` itself at the front. Raises ``GgufError``
    where one is not there, or not where llama.cpp looks for it."""
    count = first.get("split.count")
    if not isinstance(count, int) or count < 2:
        return [first]
    paths = all_parts(first.path)
    if len(paths) != count or paths[0] != first.path:
        raise GgufError(
            f"{first.path} is one of {count} parts, but not named as the first: name that one"
        )
    return [first, *(read_gguf(path, any_kind=True) for path in paths[1:])]


def whole_header(header: GgufFile) -> GgufFile:
    """The header with the tensors of all parts, where the file is the first of several. Their
    offsets are those in their own files. Raises ``GgufError``."""
    parts = model_parts(header)
    if len(parts) == 1:
        return header
    return replace(
        header,
        tensors={name: info for part in parts for name, info in part.tensors.items()},
    )


def _only_model(folder: Path) -> Path:
    others = (
        "mmproj",
        "imatrix",
    )  # what lies next to a model: its eyes, its importance matrix
    files = [path for path in folder.glob("*.gguf") if not path.name.startswith(others)]
    models = sorted({metadata_part(path) for path in files})
    if not models and (folder / "config.json").is_file():
        raise GgufError(
            f"{folder} is a checkpoint; ggext convert {folder} makes a .gguf file of it"
        )
    if len(models) != 1:
        names = ", ".join(path.name for path in models[:3]) or "no .gguf file"
        remedy = (
            "name one .gguf file"
            if models
            else "ggext convert makes one of a checkpoint"
        )
        raise GgufError(
            f"{folder} holds {names}{' …' if len(models) > 3 else ''}; {remedy}"
        )
    return models[0]
