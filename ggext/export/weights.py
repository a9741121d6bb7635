"""A GGUF file's tensors as a checkpoint has them: the converter's rules, the other way round."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import bfloat16_values
from ggext.convert.rules import gguf_name
from ggext.errors import GgufError
from ggext.gguf.types import BF16, F16, F32, I32, type_name
from ggext.gguf.writer import whole_file

if TYPE_CHECKING:
    import numpy as np

    from ggext.convert.model_source import SourceTensor
    from ggext.converters.base import Family, TensorRule
    from ggext.gguf.types import Field

#: Type → its name in safetensors, and bytes a number.
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
_WHOLE_NUMBERS = "int64"
_WRITTEN = DTYPES | {_WHOLE_NUMBERS: ("I64", 8)}
_FLOATS = {F32: "float32", F16: "float16", BF16: "bfloat16"}


@dataclass(frozen=True)
class Part:
    """What one tensor of the file says of one of the checkpoint's."""

    tensor: SourceTensor
    rule: TensorRule
    # Which of the rule's sources, of which the tensor has one after the other.
    number: int = 0

    def values(self) -> np.ndarray[Any, Any]:
        """float32 as the rule writes them, flat, before what it adds, multiplies and computes."""
        rule = self.rule
        values = dequantized(self.tensor, self.number, len(rule.sources))
        row = self.tensor.shape[0] if len(self.tensor.shape) > 1 else 1
        rows = values.reshape(-1, row)
        for factors in self._factors(len(rows) * len(rule.sources)):
            own = factors[self.number * len(rows) :][: len(rows), None]
            rows = (rows * own).astype("<f4")
        if rule.undone is not None:
            rows = rule.undone(rows)
        flat = rows.reshape(-1)
        return flat - flat.dtype.type(rule.plus) if rule.plus else flat

    def _factors(self, rows: int) -> Iterator[np.ndarray[Any, Any]]:
        if self.tensor.row_scale is not None:
            yield self.tensor.row_scale
        scale = self.rule.row_scale(rows)
        if scale is not None:
            yield 1 / scale

    def places(self) -> np.ndarray[Any, Any] | None:
        """Where each of them stands in the checkpoint's tensor, flat; None: in the same order."""
        import numpy as np

        rule = self.rule
        if not (rule.rows or rule.columns or rule.transposed or rule.arranged):
            return None
        numbers = np.arange(math.prod(rule.shape)).reshape(rule.shape)
        if rule.arranged is not None:
            return rule.arranged(numbers).reshape(-1)
        if rule.transposed:
            numbers = numbers.swapaxes(-1, -2)
        shape = rule.view or numbers.shape
        row = shape[-1:] if len(shape) > 1 else ()
        rows = numbers.reshape(-1, *row)
        if rule.rows is not None:
            rows = rows[rule.rows()]
        if rule.columns is not None:
            rows = rows[:, rule.columns()]
        return rows.reshape(-1)


@dataclass(frozen=True)
class Inverted:
    """One tensor to write: its name and shape in the checkpoint, and where it comes from."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def type(self) -> int:
        """ggml's, of the first that it is made of."""
        return self.parts[0].tensor.type

    def values(self) -> np.ndarray[Any, Any]:
        """float32, in the checkpoint's order; of quantized tensors what their blocks stand for.
        Raises ``GgufError`` where the file has not all of them."""
        import numpy as np

        count = math.prod(self.shape)
        whole = np.empty(count, "<f4")
        missing = np.ones(count, np.bool_)
        for part in self.parts:
            places = part.places()
            values = part.values()
            if places is None and len(values) == count:
                return values.reshape(self.shape)
            chosen = slice(len(values)) if places is None else places
            whole[chosen] = values
            missing[chosen] = False
            if not missing.any():
                return whole.reshape(self.shape)
        raise GgufError(
            f"{self.parts[0].tensor.place} and others do not have all values of {self.name}"
        )


@dataclass(frozen=True)
class Scalar:
    """A tensor of one value, which the file has in its keys."""

    name: str
    shape: tuple[int, ...]
    value: float
    type: int = F32

    def values(self) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.full(self.shape, self.value, "<f4")


Made = Inverted | Scalar


def scalars(family: Family, fields: Mapping[str, Field], path: Path) -> list[Scalar]:
    """The family's tensors of one value. Raises ``GgufError`` for one that no key has."""
    made = []
    for key, names in family.scalars().items():
        field = fields.get(key)
        values = field.value if field is not None else None
        if not isinstance(values, list) or len(values) != len(names):
            raise GgufError(f"{path}: {key} is not a number for each of {len(names)}")
        made += [
            Scalar(name, family.scalar_shape(name), float(value))
            for name, value in zip(names, values, strict=True)
        ]
    return made


def dequantized(
    tensor: SourceTensor, number: int = 0, count: int = 1
) -> np.ndarray[Any, Any]:
    """All values of a tensor of a GGUF file, flat, in float32; of ``count`` equal parts of its rows
    the one with this number."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    (path, start, size), *_ = replace(tensor, row_scale=None).stored()
    size //= count
    data = np.fromfile(path, "u1", size, offset=start + number * size)
    if tensor.type == F32:
        return data.view("<f4")
    if tensor.type == I32:  # whole numbers
        return data.view("<i4")
    if tensor.type == F16:
        return data.view("<f2").astype(np.float32)
    if tensor.type == BF16:
        return bfloat16_values(data.view("<u2"))
    try:
        rows = data.reshape(math.prod(tensor.shape[1:]) // count, -1)
        values: np.ndarray[Any, Any] = dequantize(
            rows, GGMLQuantizationType(tensor.type)
        )
    except NotImplementedError:
        raise GgufError(
            f"{tensor.place} is {type_name(tensor.type)}, which the gguf package cannot read back"
        ) from None
    return values.reshape(-1)


def inverted(
    family: Family, tensors: Sequence[SourceTensor], path: Path
) -> tuple[list[Inverted], set[str]]:
    """Every tensor of the family's rules, and the names of those of the file that they are made
    of. Raises ``GgufError`` for one that is missing, or is made in a way that cannot be taken
    back."""
    by_name = {tensor.name: tensor for tensor in tensors}
    parts: dict[str, list[Part]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    used: set[str] = set()
    for usual in family.tensors():
        name = usual.target or gguf_name(family.arch, usual.sources[0])
        rule = _in_floats(usual)
        if rule.unless or (rule.optional and name not in by_name):
            continue
        _check_there(by_name, name, rule, path)
        used.add(name)
        for i, source in enumerate(rule.sources):
            shapes[source] = rule.shape
            known = parts.setdefault(source, [])
            if rule.computed is None or rule.undone is not None:
                known.append(Part(by_name[name], rule, i))
    lost = next((source for source, known in parts.items() if not known), None)
    if lost is not None:
        raise GgufError(f"{path}: no tensor of the file has the values of {lost}")
    made = [Inverted(name, shapes[name], tuple(known)) for name, known in parts.items()]
    return made, used


def _in_floats(rule: TensorRule) -> TensorRule:
    """The form of a rule whose source is not packed."""
    while rule.scales and rule.instead is not None:
        rule = rule.instead
    return rule


def _check_there(
    by_name: Mapping[str, SourceTensor], name: str, rule: TensorRule, path: Path
) -> None:
    if name not in by_name:
        raise GgufError(f"{path}: the tensor {name} is missing")
    size = math.prod(rule.shape) * len(rule.sources)
    if rule.written is not None:
        size = math.prod(rule.written)
    if math.prod(by_name[name].shape) != size or rule.scales:
        raise GgufError(
            f"{path}: {name} has the shape {by_name[name].shape}, and its keys say "
            f"{(rule.written or rule.shape)[::-1]}"
        )


def prevailing_dtype(tensors: Sequence[SourceTensor]) -> str:
    """The float type that most numbers have, which holds all of them where none is quantized;
    float32 else."""
    counts: dict[int, int] = {}
    for tensor in tensors:
        counts[tensor.type] = counts.get(tensor.type, 0) + math.prod(tensor.shape)
    return _FLOATS.get(max(counts, key=lambda kind: counts[kind]), "float32")


def write(
    path: Path, tensors: Sequence[Made], dtype: str, progress: Callable[[int], None]
) -> None:
    """One safetensors file. ``dtype``: of all tensors, but of those that it cannot hold exactly,
    which are float32. ``progress``: bytes written."""
    sizes = {item.name: _WRITTEN[_dtype(item, dtype)] for item in tensors}
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


def _dtype(item: Made, dtype: str) -> str:
    """What holds the tensor: llama.cpp has norms in float32, whatever the checkpoint had."""
    if item.type == I32:
        return _WHOLE_NUMBERS
    if dtype == "float32" or item.type != F32 or len(item.shape) > 1:
        return dtype
    name = DTYPES[dtype][0]
    values = item.values()
    kept = decoded(encoded(values, name), name) == values.ravel()
    return dtype if bool(kept.all()) else "float32"


def encoded(values: np.ndarray[Any, Any], dtype: str) -> bytes:
    """float32 values, or whole numbers, in a type of safetensors."""
    if dtype == "I64":
        return values.astype("<i8").tobytes()
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
