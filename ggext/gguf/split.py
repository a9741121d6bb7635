"""One model in several files, as llama.cpp's gguf-split makes them: all keys in the first, some
tensors in each.

llama.cpp opens the set by its first file. Where a set replaces another, that one goes first and
comes last, so at no moment does it name files that are not its own; between the two, for as long as
the renames take, there is no set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ggext.errors import OutputError
from ggext.gguf.types import Field, ValueType
from ggext.gguf.writer import (
    TensorToWrite,
    arrange,
    check_room,
    output_errors,
    temporary_beside,
    write_arranged,
)

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_MOST_PARTS = 65_535  # split.count is 16 bits wide


def part_path(out: Path, number: int, count: int) -> Path:
    """``out`` is NAME.gguf; ``number`` counts from 0."""
    return out.with_name(
        f"{out.name.removesuffix('.gguf')}-{number + 1:05d}-of-{count:05d}.gguf"
    )


def check_parts(out: Path, force: bool) -> None:
    """Raise ``OutputError`` where the folder has a set of this name already."""
    first = sorted(
        out.parent.glob(
            f"{_escaped(out.name.removesuffix('.gguf'))}-00001-of-[0-9][0-9][0-9][0-9][0-9].gguf"
        )
    )
    if first and not force:
        raise OutputError(
            f"{first[0]} exists; use force=True to replace it, or name another output"
        )


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def write_parts(
    out: Path,
    fields: Mapping[str, Field],
    tensors: Sequence[TensorToWrite],
    most: int,
    progress: Callable[[int], None] = lambda _: None,
    approve: Callable[[], None] = lambda: None,
) -> tuple[Path, ...]:
    """Write files of at most ``most`` bytes of tensor data each (a larger tensor has one of its
    own) and return their paths. All of them are whole, or none is there. ``approve``: as in
    `write_gguf`. Raises ``OutputError``.
    """
    parts = _shared_out(tensors, most)
    if len(parts) > _MOST_PARTS:
        raise OutputError(
            f"{out}: parts of {most:,} bytes would be {len(parts):,} files; {_MOST_PARTS:,} are "
            "allowed"
        )
    arranged = [
        arrange(_part_fields(fields, i, parts, len(tensors)), part)
        for i, part in enumerate(parts)
    ]
    paths = tuple(part_path(out, i, len(parts)) for i in range(len(parts)))
    with ExitStack() as files:
        check_room(paths[0], sum(part.size for part in arranged))
        besides = []
        for path, part in zip(paths, arranged, strict=True):
            beside = files.enter_context(temporary_beside(path))
            besides.append(beside)
            with output_errors(path):
                write_arranged(beside.handle, part, progress)
            beside.close()  # there may be more than can be open at once
        approve()
        with output_errors(paths[0]):
            if any(
                path.exists() for path in paths
            ):  # wait now, and not between two renames
                for beside in besides:
                    beside.sync()
            paths[0].unlink(missing_ok=True)
        for path, beside in reversed(list(zip(paths, besides, strict=True))):
            beside.put_in_place(path)
    return paths


def _shared_out(
    tensors: Sequence[TensorToWrite], most: int
) -> list[list[TensorToWrite]]:
    parts: list[list[TensorToWrite]] = [[]]
    used = 0
    for tensor in tensors:
        if parts[-1] and used + tensor.nbytes > most:
            parts.append([])
            used = 0
        parts[-1].append(tensor)
        used += tensor.nbytes
    return parts


def _part_fields(
    fields: Mapping[str, Field], number: int, parts: Sequence[object], n_tensors: int
) -> dict[str, Field]:
    """The keys of one part: all of them in the first, in the others what says how to read them."""
    own = {
        key: field
        for key, field in fields.items()
        if number == 0 or key == "general.alignment"
    }
    return own | {
        "split.no": Field(ValueType.UINT16, number),
        "split.count": Field(ValueType.UINT16, len(parts)),
        "split.tensors.count": Field(ValueType.INT32, n_tensors),
    }
