"""A GGUF file's tensors as a checkpoint has them: the converter's rules, the other way round."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import bfloat16_values
from ggext.convert.rules import gguf_name
from ggext.errors import GgufError
from ggext.gguf.types import BF16, F16, F32, type_name
from ggext.gguf.writer import whole_file

if TYPE_CHECKING:
    import numpy as np

    from ggext.convert.model_source import SourceTensor
    from ggext.converters.base import Family, TensorRule

#: Type → its name in safetensors, and bytes a number.
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
_FLOATS = {F32: "float32", F16: "float16", BF16: "bfloat16"}


@dataclass(frozen=True)
class Inverted:
    """One tensor to write: its name and shape in the checkpoint, and where it comes from."""

    name: str
    shape: tuple[int, ...]
    tensor: SourceTensor
    rule: TensorRule

    def values(self) -> np.ndarray[Any, Any]:
        """float32, in the checkpoint's order; of quantized tensors what their blocks stand for."""
        import numpy as np

        values = dequantized(self.tensor).reshape(-1, *self.tensor.shape[:-1][::-1])
        if self.tensor.row_scale is not None:
            scale = self.tensor.row_scale.reshape(-1, *[1] * (values.ndim - 1))
            values = (values * scale).astype(np.float32)
        if self.rule.rows is not None:
            ordered = np.empty_like(values)
            ordered[self.rule.rows()] = values
            values = ordered
        if self.rule.plus:
            values = values - np.float32(self.rule.plus)
        return values.reshape(self.shape)


def dequantized(tensor: SourceTensor) -> np.ndarray[Any, Any]:
    """All values of a tensor of a GGUF file, flat, in float32."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    data = np.concatenate(
        [
            np.fromfile(path, "u1", size, offset=start)
            for path, start, size in _places(tensor)
        ]
    )
    if tensor.type == F32:
        return data.view("<f4")
    if tensor.type == F16:
        return data.view("<f2").astype(np.float32)
    if tensor.type == BF16:
        return bfloat16_values(data.view("<u2"))
    try:
        rows = data.reshape(math.prod(tensor.shape[1:]), -1)
        values: np.ndarray[Any, Any] = dequantize(
            rows, GGMLQuantizationType(tensor.type)
        )
    except NotImplementedError:
        raise GgufError(
            f"{tensor.place} is {type_name(tensor.type)}, which the gguf package cannot read back"
        ) from None
    return values.reshape(-1)


def _places(tensor: SourceTensor) -> list[tuple[Path, int, int]]:
    return replace(tensor, row_scale=None).stored()


def inverted(
    family: Family, tensors: Sequence[SourceTensor], path: Path
) -> Iterator[Inverted]:
    """Every tensor of the family's rules. Raises ``GgufError`` for one that is missing, or is made
    in a way that cannot be taken back."""
    by_name = {tensor.name: tensor for tensor in tensors}
    for rule in family.tensors():
        name = rule.target or gguf_name(family.arch, rule.sources[0])
        if rule.unless:
            continue
        if name not in by_name:
            if rule.optional:
                continue
            raise GgufError(f"{path}: the tensor {name} is missing")
        simple = len(rule.sources) == 1 and not (
            rule.transposed or rule.view or rule.arranged
        )
        if not simple or rule.written is not None or rule.scales or rule.below:
            raise GgufError(
                f"{path}: {name} is made of several tensors, and is not taken apart"
            )
        if math.prod(by_name[name].shape) != math.prod(rule.shape):
            raise GgufError(
                f"{path}: {name} has the shape {by_name[name].shape}, and its keys say "
                f"{rule.shape[::-1]}"
            )
        yield Inverted(rule.sources[0], rule.shape, by_name[name], rule)


def prevailing_dtype(tensors: Sequence[SourceTensor]) -> str:
    """The float type that most numbers have, which holds all of them where none is quantized;
    float32 else."""
    counts: dict[int, int] = {}
    for tensor in tensors:
        counts[tensor.type] = counts.get(tensor.type, 0) + math.prod(tensor.shape)
    return _FLOATS.get(max(counts, key=lambda kind: counts[kind]), "float32")


def write(
    path: Path, tensors: Sequence[Inverted], dtype: str, progress: Callable[[int], None]
) -> None:
    """One safetensors file. ``dtype``: of all tensors, but of those that it cannot hold exactly,
    which are float32. ``progress``: bytes written."""
    sizes = {item.name: DTYPES[_dtype(item, dtype)] for item in tensors}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in tensors:
        name, width = sizes[item.name]
        start = end
        end = end + width * math.prod(item.shape)
        header[item.name] = {
            "dtype": name,
            "shape": list(item.shape),
            "data_offsets": [start, end],
        }
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    with whole_file(path, 8 + len(packed) + end) as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        for item in tensors:
            data = encoded(item.values(), sizes[item.name][0])
            file.write(data)
            progress(len(data))


def _dtype(item: Inverted, dtype: str) -> str:
    """What holds the tensor: llama.cpp has norms in float32, whatever the checkpoint had."""
    if dtype == "float32" or item.tensor.type != F32 or len(item.shape) > 1:
        return dtype
    name = DTYPES[dtype][0]
    values = item.values()
    kept = decoded(encoded(values, name), name) == values.ravel()
    return dtype if bool(kept.all()) else "float32"


def encoded(values: np.ndarray[Any, Any], dtype: str) -> bytes:
    """float32 values in a type of safetensors."""
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values.astype("<f4"), GGMLQuantizationType.BF16).tobytes()


def decoded(data: bytes, dtype: str) -> np.ndarray[Any, Any]:
    """The values of such bytes, flat, in float32."""
    import numpy as np

    if dtype == "BF16":
        return bfloat16_values(np.frombuffer(data, "<u2"))
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
