"""What a checkpoint says of itself, as the ``general.`` metadata that programs show: name, size,
license, sampling.

The ``gguf`` package makes it, of the front matter of README.md and of the model's name, as
llama.cpp's own converter does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.files import read_json
from ggext.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from gguf import GGUFWriter

_MAX_CARD = 1 << 20
_NAMED_BEHAVIOUR = re.compile(r"(phi)-?3", re.IGNORECASE)
#: Key of generation_config.json → attribute of gguf's Metadata, and the type that it is written as.
_SAMPLING: dict[str, tuple[str, type[int | float]]] = {
    "temperature": ("sampling_temp", float),
    "top_k": ("sampling_top_k", int),
    "top_p": ("sampling_top_p", float),
    "min_p": ("sampling_min_p", float),
    "repetition_penalty": ("sampling_penalty_repeat", float),
}


def general_metadata(
    folder: Path,
    name: str,
    arch: str,
    tensors: Iterable[tuple[str, tuple[int, ...]]],
) -> tuple[dict[str, Any], list[str]]:
    """Full keys → values, and a note where the card cannot be read. ``name``: the model's, for what
    its card does not say. ``tensors``: name and shape (PyTorch order) of all."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(None, arch)
    for tensor, shape in tensors:
        writer.add_tensor_info(tensor, shape, np.dtype("float32"), 0)
    sampling = _sampling(folder)
    try:
        return _described(writer, _card(folder), sampling, name), []
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        AssertionError,
        RecursionError,
    ) as error:
        note = (
            f"README.md: its front matter cannot be used ({first_line(error)[:80]}); what it says "
            "is left out"
        )
        return _described(writer, {}, sampling, name), [note]


def _card(folder: Path) -> dict[str, Any]:
    from gguf import Metadata
    from yaml import YAMLError

    path = folder / "README.md"
    if path.is_file() and path.stat().st_size > _MAX_CARD:
        raise ValueError(f"it has more than {_MAX_CARD:,} bytes")
    try:
        return dict(Metadata.load_model_card(folder))
    except YAMLError as error:
        raise ValueError(str(error)) from None


def _sampling(folder: Path) -> dict[str, int | float]:
    """Attributes of gguf's Metadata; a file that is not as it should be says nothing."""
    try:
        given = read_json(folder / "generation_config.json")
    except CheckpointError:
        return {}
    result: dict[str, int | float] = {}
    for key, (attribute, kind) in _SAMPLING.items():
        value = (given or {}).get(key)
        if (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and 0 <= value < 1 << 31
        ):
            result[attribute] = kind(value)
    return result


def _described(
    writer: GGUFWriter,
    card: dict[str, Any],
    sampling: Mapping[str, int | float],
    name: str,
) -> dict[str, Any]:
    from gguf import Metadata, size_label

    counts = writer.get_total_parameter_count()
    metadata = Metadata.apply_metadata_heuristic(
        Metadata(), card, {}, Path(name), counts[0]
    )
    metadata.name = metadata.name or name
    metadata.size_label = metadata.size_label or size_label(*counts)
    for attribute, value in sampling.items():
        setattr(metadata, attribute, value)
    writer.kv_data = [{}]
    metadata.set_gguf_meta_model(writer)
    values = {key: entry.value for key, entry in writer.kv_data[0].items()}
    values["general.name"] = _without_meaning(str(values["general.name"]))
    wrong = next((key for key, value in values.items() if not _is_plain(value)), None)
    if wrong is not None:
        raise TypeError(f"{wrong} is neither a text nor a list of texts")
    return values


def _without_meaning(name: str) -> str:
    """The name, spelt so that it says nothing to llama.cpp: the vocabulary of a model named phi3 or
    phi-3 must have four tokens of Phi 3's, whatever it is (``ggext.runtime.refusals``)."""
    return _NAMED_BEHAVIOUR.sub(r"\1 3", name)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) or (
        isinstance(value, list) and all(isinstance(v, str) for v in value)
    )
