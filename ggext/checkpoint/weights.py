"""All tensors of a checkpoint, whichever files they are in.

Where several files could hold the weights, the order is transformers': what config.json names, the
single file, the index of shards; safetensors before pickles. Notes name what is not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggext.checkpoint.contents import ADAPTER_WEIGHTS, adapter_note, refusal
from ggext.checkpoint.files import check_link, quote, read_json
from ggext.checkpoint.pickles import read_pickle
from ggext.checkpoint.safetensors import CheckpointTensor, read_header, same_values
from ggext.errors import CheckpointError

_MAX_INDEX = 128 << 20
_INDEX = ".index.json"

Reader = Callable[[Path], Iterable[CheckpointTensor]]
#: File name → its reader, in the order of preference; an index of shards is FILE.index.json.
FORMATS: dict[str, Reader] = {
    "model.safetensors": read_header,
    "pytorch_model.bin": read_pickle,
}
_SHARD = re.compile(r"(model|pytorch_model)-(\d+)-of-(\d+)\.(safetensors|bin)")
_MOST_SHARDS = 100_000
#: Files that hold, or could hold, the weights of a whole model.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "consolidated*.pth")


@dataclass(frozen=True)
class _Chosen:
    """The files that are read, and what messages call them all."""

    name: str
    files: Sequence[str]
    # shards that no index names
    unindexed: bool = False


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a checkpoint."""

    by_name: Mapping[str, CheckpointTensor]
    # A line for weights that are there and not read.
    notes: tuple[str, ...]


def read_tensors(folder: Path) -> dict[str, CheckpointTensor]:
    """All tensors of a checkpoint by name. Raises as ``read_stored``."""
    return dict(read_stored(folder).by_name)


def read_stored(folder: Path) -> StoredTensors:
    """All tensors of a checkpoint. Raises ``CheckpointError`` naming file, tensor and remedy."""
    chosen = _chosen(folder)
    if chosen is None:
        raise refusal(
            folder,
            f"has neither {', '.join(FORMATS)} nor an index of shards; download the weights",
        )
    notes = _not_read(folder, chosen) + adapter_note(folder)
    tensors: dict[str, CheckpointTensor] = {}
    for name in chosen.files:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing and {chosen.name} names it; download it"
            )
        check_link(folder / name)
        for tensor in FORMATS[_format_of(name)](folder / name):
            if tensor.name in tensors:
                notes.append(_same_tensor(tensors[tensor.name], tensor))
            tensors[tensor.name] = tensor
    if chosen.name.endswith(_INDEX) and not chosen.unindexed:
        _check_promised(folder / chosen.name, tensors)
    return StoredTensors(tensors, tuple(notes))


def preferred(folder: Path) -> list[str]:
    """The names under which a folder's weights may be, the first that is there being taken: files
    and indexes of shards."""
    explicit = (read_json(folder / "config.json") or {}).get("transformers_weights")
    usual = [name + kind for name in FORMATS for kind in ("", _INDEX)]
    if explicit is None:
        return usual
    if not isinstance(explicit, str) or not _is_plain(explicit):
        raise CheckpointError(
            f"{folder / 'config.json'}: transformers_weights is {quote(repr(explicit))}; it must "
            "name a file next to it"
        )
    return [explicit]


def files_of(folder: Path, name: str) -> list[str]:
    """The files of weights that ``name``, one of ``preferred``, stands for; none for an index that
    is not there."""
    return shard_names(folder / name) if name.endswith(_INDEX) else [name]


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, each once; none where there is no index."""
    return sorted(set(_weight_map(index).values())) if index.is_file() else []


def read_before(folder: Path) -> str:
    """A clause that says which of several weights were read, for a message that refuses them;
    empty where there is one."""
    chosen = _chosen(folder)
    others = _others(folder, chosen) if chosen else []
    if chosen is None or not others:
        return ""
    return (
        f" ({chosen.name} is read before {others[0]}, as transformers does: remove the one that is "
        "not meant)"
    )


def _chosen(folder: Path) -> _Chosen | None:
    for name in preferred(folder):
        if (folder / name).is_file():
            return _Chosen(name, files_of(folder, name))
    return _unindexed(folder)


def _unindexed(folder: Path) -> _Chosen | None:
    """Shards whose index is not there: their names say that they are all."""
    sets: dict[tuple[str, str, str], dict[int, str]] = {}
    for path in sorted(folder.iterdir()):
        match = _SHARD.fullmatch(path.name)
        if match is not None and 0 < int(match[3]) < _MOST_SHARDS:
            sets.setdefault((match[1], match[3], match[4]), {})[int(match[2])] = (
                path.name
            )
    if not sets:
        return None
    (stem, count, kind), shards = next(iter(sets.items()))
    index = f"{stem}.{kind}{_INDEX}"
    if len(sets) > 1:
        raise CheckpointError(
            f"{folder} has shards of several models and no index that says which: {index} is "
            f"missing; download it, or remove those that are not meant ({shards[min(shards)]})"
        )
    missing = [number for number in range(1, int(count) + 1) if number not in shards]
    if missing:
        name = f"{stem}-{missing[0]:05d}-of-{count}.{kind}"
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {int(count)} shards, first {name}, and {index}; "
            "download them"
        )
    return _Chosen(index, [shards[number] for number in sorted(shards)], unindexed=True)


def _not_read(folder: Path, chosen: _Chosen) -> list[str]:
    """A line for further weights that are there, and one for an index that is not."""
    lines = []
    if chosen.unindexed:
        lines.append(
            f"{chosen.name} is missing: the {len(chosen.files)} shards are read without it"
        )
    others = _others(folder, chosen)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        lines.append(
            f"{chosen.name} is read, as transformers does; also there and not read: "
            f"{', '.join(others[:3])}{more}"
        )
    return lines


def _others(folder: Path, chosen: _Chosen) -> list[str]:
    """Weights and indexes that are not read, but for an adapter's."""
    there = {path.name for pattern in _WEIGHTS for path in folder.glob(pattern)}
    indexes = {
        name + _INDEX for name in FORMATS if (folder / (name + _INDEX)).is_file()
    }
    left_out = (there | indexes) - {chosen.name, *chosen.files, *ADAPTER_WEIGHTS}
    return sorted(left_out, key=lambda name: (not name.endswith(_INDEX), name))


def _same_tensor(before: CheckpointTensor, tensor: CheckpointTensor) -> str:
    """A note on a tensor in two files. Raises ``CheckpointError`` where its values differ."""
    both = f"tensor {tensor.name} is in {before.path.name} and in {tensor.path.name}"
    if not same_values(before, tensor):
        raise CheckpointError(
            f"{tensor.path.parent}: {both}, with other values; remove the file that is left from "
            "another model"
        )
    return f"{both}, with the same values"


def _check_promised(index: Path, tensors: Mapping[str, CheckpointTensor]) -> None:
    missing = sorted(set(_weight_map(index)) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{index} promises {len(missing)} tensors that no shard holds, first {missing[0]}; "
            "download again"
        )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = (read_json(index, _MAX_INDEX) or {}).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map is missing or empty; download it again"
        )
    for name in weight_map.values():
        if not isinstance(name, str) or not _is_plain(name):
            raise CheckpointError(
                f"{index} names the file {quote(repr(name))}; shards must lie next to it"
            )
    return dict(weight_map)


def _is_plain(name: str) -> bool:
    return bool(name) and Path(name).name == name and "\0" not in name


def _format_of(name: str) -> str:
    return "pytorch_model.bin" if name.endswith(".bin") else "model.safetensors"
