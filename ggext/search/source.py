"""The file that is searched for: unscaled, and with room for a better table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ggext.convert.request import default_name, resolve_scaling
from ggext.convert.sources import open_source
from ggext.errors import GgufError, RopeError, UsageError
from ggext.rope import methods
from ggext.rope.scaling import RopeScaling
from ggext.search.options import SearchOptions
from ggext.search.space import COORDINATES, Space


@dataclass(frozen=True)
class Searchable:
    """A file, the tables to choose from, and where the result goes."""

    path: Path
    trained: int
    space: Space
    out: Path
    notes: tuple[str, ...]


def searchable(path: Path, options: SearchOptions) -> Searchable:
    """Raises UsageError, GgufError, RopeError for a file that nothing can be searched for."""
    source = open_source(path)
    if not source.is_gguf:
        raise UsageError(
            f"{path} is a checkpoint, and a search runs a GGUF file: ggext convert {path} "
            "--rope none makes one"
        )
    if source.problem:
        raise GgufError(f"{source.path}: {source.problem}")
    if not source.is_unscaled_gguf:
        raise RopeError(
            f"{source.path} is scaled already, and a search starts from the model as it was "
            f"trained: ggext convert {path} --rope none (or ggext undo, after a bake in place)"
        )
    target = options.target_context
    trained = source.geometry.trained_context
    if target <= trained:
        raise UsageError(
            f"{source.path} was trained on {trained:,} tokens and reaches {target:,} without a "
            "scaling: give a longer target"
        )
    request = resolve_scaling(RopeScaling("yarn"), target, source, keeps_own=False)
    notes = list(request.notes)
    yarn = request.scaling
    if yarn is None or yarn.method != "yarn":
        raise UsageError(f"{source.path} reaches {target:,} tokens without a scaling")
    geometry = replace(
        source.geometry,
        trained_context=methods.original_context(yarn, source.geometry),
    )
    space = Space(yarn, geometry, source.arch)
    fixed = [name for name in COORDINATES if name not in space.free]
    if not space.free:
        raise RopeError(
            f"llama.cpp's {source.arch} can be made to run no other table than YaRN's own: "
            "there is nothing to search"
        )
    if fixed:
        words = ", ".join(_WORDS[name] for name in fixed)
        notes.append(
            f"not searched, since no file can say it for {source.arch}: {words}"
        )
    name = default_name(source, yarn, "auto").removesuffix(".gguf")
    stem = name.rpartition("-yarn")[0] or name
    return Searchable(
        source.path,
        trained,
        space,
        options.out or Path(f"{stem}-search{target}.gguf"),
        tuple(notes),
    )


_WORDS = {
    "overshoot": "the factor",
    "last": "the last blended pair",
    "first": "the first blended pair",
    "gain": "the gain",
}
