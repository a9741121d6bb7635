"""All tensors of a checkpoint, whichever files they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ggext.checkpoint.files import quote, read_json
from ggext.checkpoint.pickles import read_pickle
from ggext.checkpoint.safetensors import CheckpointTensor, read_header
from ggext.errors import CheckpointError

_MAX_INDEX = 128 << 20

Reader = Callable[[Path], Iterable[CheckpointTensor]]
#: File name → its reader, in the order of preference; an index of shards is FILE.index.json.
FORMATS: dict[str, Reader] = {"model.safetensors": read_header, "pytorch_model.bin": read_pickle}


def read_tensors(folder: Path) -> dict[str, CheckpointTensor]:
    """All tensors of a checkpoint by name. Raises ``CheckpointError`` naming file, tensor and
    remedy."""
    for name, read in FORMATS.items():
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(folder, index, read)
        if (folder / name).is_file():
            return {tensor.name: tensor for tensor in read(folder / name)}
    raise CheckpointError(
        f"{folder} has neither {', '.join(FORMATS)} nor an index of shards; download the weights"
    )


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, each once; none where there is no index."""
    return sorted(set(_weight_map(index).values())) if index.is_file() else []


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = (read_json(index, _MAX_INDEX) or {}).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty; download it again")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise CheckpointError(
                f"{index} names the file {quote(repr(name))}; shards must lie beside it"
            )
    return dict(weight_map)


def _indexed(folder: Path, index: Path, read: Reader) -> dict[str, CheckpointTensor]:
    weight_map = _weight_map(index)
    tensors: dict[str, CheckpointTensor] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing and {index.name} names it; download it"
            )
        for tensor in read(folder / name):
            if tensor.name in tensors:
                raise CheckpointError(f"tensor {tensor.name} is in two shards of {index}; keep one")
            tensors[tensor.name] = tensor
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{index} promises {len(missing)} tensors that no shard holds, first {missing[0]}; "
            "download again"
        )
    return tensors
