"""A family's rules applied to the tensors that a checkpoint has."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import CheckpointTensor, bfloat16_values
from ggext.errors import CheckpointError
from ggext.gguf.types import BF16, F16, F32, MXFP4, aligned

if TYPE_CHECKING:
    import numpy as np
    from gguf.tensor_mapping import TensorNameMap

    from ggext.converters.base import TensorRule

_GGML_TYPE = {"F64": F32, "F32": F32, "F16": F16, "BF16": BF16}
#: Buffers that old checkpoints carry and the model does not need.
_DERIVED_SUFFIXES = (
    "rotary_emb.inv_freq",
    "attn.masked_bias",
    "attn.bias",
    "attention.masked_bias",
    "attention.bias",
)
#: Rows that are read for each row that is chosen: half of two interleaved tensors is 2, a permuted
#: head 1.
_LARGEST_SPAN = 4
_MOST_BYTES = 8  # of a value, as it is stored
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
_EXPERT_NUMBER = re.compile(r"\.experts\.\d+\.")


def ggml_mxfp4(
    blocks: np.ndarray[Any, Any], exponents: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Rows of MXFP4 as ggml packs them: of 32 values the exponent, then 16 bytes with value i
    next to value i + 16.

    ``blocks``: uint8 (rows, blocks, 16), each byte two neighbours, the first in its lower half;
    ``exponents``: uint8 (rows, blocks). The result is (rows, blocks · 17).
    """
    import numpy as np

    values = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(
        *blocks.shape[:-1], 32
    )
    packed = values[..., :16] | values[..., 16:] << 4
    return np.concatenate([exponents[..., None], packed], axis=-1).reshape(
        len(blocks), -1
    )


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a tensor, in writing order."""

    # Rows, or values of a one-dimensional tensor.
    n_rows: int
    # Values in all.
    n_values: int
    # Gives them, in any thread.
    read: Callable[[], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class MappedTensor:
    """Tensors of a checkpoint in the order and the shape in which they are written, under their
    GGUF name.

    ``tensors`` are all of one shape, but for MXFP4's blocks and exponents; where they are of
    several dtypes, all become float32, which holds the values of each. ``shape`` in PyTorch order.
    """

    name: str
    tensors: tuple[CheckpointTensor, ...]
    rule: TensorRule

    @property
    def dtype(self) -> str:
        """As safetensors spells it; F32 for what is computed, MXFP4 for what is packed as ggml
        packs it."""
        if self.rule.scales is not None:
            return "MXFP4"
        computed = self.rule.plus or self.rule.computed is not None
        return "F32" if computed or self.is_mixed else self.tensors[0].dtype

    @property
    def is_mixed(self) -> bool:
        """Whether the sources have several dtypes."""
        return (
            self.rule.scales is None
            and len({tensor.dtype for tensor in self.tensors}) > 1
        )

    @property
    def type(self) -> int:
        """The ggml type that holds the values without loss."""
        return MXFP4 if self.rule.scales is not None else _GGML_TYPE[self.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        rule = self.rule
        if rule.written is not None:
            return rule.written
        shape = _rearranged(rule)
        return (len(self.tensors), *shape) if len(self.tensors) > 1 else shape

    def stored(self) -> list[tuple[Path, int, int]]:
        """Where the bytes to write stand, one after the other, as (file, first byte, bytes);
        nothing where they are to be made."""
        rule = self.rule
        made = (
            rule.rows
            or rule.columns
            or rule.transposed
            or rule.plus
            or rule.computed
            or rule.arranged
            or self.is_mixed
            or self.tensors[0].dtype == "F64"
        )
        if made or not all(tensor.is_stored for tensor in self.tensors):
            return []
        return [(tensor.path, tensor.start, tensor.nbytes) for tensor in self.tensors]

    def blocks(self, nbytes: int) -> Iterator[RowBlock]:
        """Whole rows in writing order, about ``nbytes`` at a time: two-dimensional (one-dimensional
        where the tensor is); bfloat16 as its uint16 bits, MXFP4 as ggml's bytes."""
        if self.rule.arranged is not None:
            yield from self._arranged_blocks(nbytes)
            return
        shape = _rearranged(self.rule)
        row_length = shape[-1] if len(shape) > 1 else 1
        n_all = math.prod(shape) // row_length
        n_rows = n_all if self.rule.rows is None else len(self.rule.rows())
        row_bytes = self.tensors[0].nbytes * row_length // math.prod(shape)
        step = rows_at_once(nbytes, row_bytes, row_length)
        for tensor in self.tensors:
            for start in range(0, n_rows, step):
                stop = min(n_rows, start + step)
                yield RowBlock(
                    stop - start,
                    (stop - start) * row_length,
                    partial(self._read, tensor, start, stop),
                )

    def _arranged_blocks(self, nbytes: int) -> Iterator[RowBlock]:
        """Of two or more dimensions; no block has rows of two matrices."""
        *matrices, n_rows, row_length = self.shape
        step = rows_at_once(nbytes, row_length * _MOST_BYTES, row_length)
        starts = range(0, n_rows, step)
        assert self.rule.arranged is not None
        wholes = _Wholes(
            self.tensors, self.rule.arranged, math.prod(matrices) * len(starts)
        )
        for matrix in range(math.prod(matrices)):
            for start in starts:
                rows = slice(start, min(n_rows, start + step))
                place = (matrix, rows) if matrices else (rows,)
                count = rows.stop - start
                read = partial(self._read_arranged, wholes, place)
                yield RowBlock(count, count * row_length, read)

    def _read_arranged(
        self, wholes: _Wholes, place: tuple[int | slice, ...]
    ) -> np.ndarray[Any, Any]:
        first, *others = (whole[place] for whole in wholes.taken())
        return ggml_mxfp4(first, *others) if self.rule.scales is not None else first

    def _read(
        self, tensor: CheckpointTensor, start: int, stop: int
    ) -> np.ndarray[Any, Any]:
        rule = self.rule
        block = _rows(tensor, rule, start, stop)
        if rule.columns is not None:
            block = block[:, rule.columns()]
        if not rule.plus and rule.computed is None and not self.is_mixed:
            return block
        values = (
            bfloat16_values(block) if tensor.dtype == "BF16" else block.astype("<f4")
        )
        if rule.computed is not None:
            return rule.computed(values)
        return values + values.dtype.type(rule.plus) if rule.plus else values


class _Wholes:
    """Arranged views of a tensor's sources: made for its first block, since values of float8 are
    computed all together, and let go with its last, so that no file stays mapped."""

    def __init__(
        self,
        tensors: Sequence[CheckpointTensor],
        arranged: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
        blocks: int,
    ) -> None:
        self._tensors = tensors
        self._arranged = arranged
        self._left = blocks
        self._lock = threading.Lock()
        self._values: list[np.ndarray[Any, Any]] | None = None

    def taken(self) -> list[np.ndarray[Any, Any]]:
        """For one block, in any thread."""
        with self._lock:
            values = self._values or [
                self._arranged(tensor.array()) for tensor in self._tensors
            ]
            self._left -= 1
            self._values = values if self._left > 0 else None
            return values


def rows_at_once(nbytes: int, row_bytes: int, row_length: int) -> int:
    """How many rows to take together: about ``nbytes``, and whole blocks of 32 values even where a
    row is none."""
    return aligned(max(1, nbytes // row_bytes), 32 // math.gcd(32, row_length))


def _rearranged(rule: TensorRule) -> tuple[int, ...]:
    """The shape of one source before its rows are chosen."""
    shape = rule.shape
    if rule.transposed:
        shape = (*shape[:-2], shape[-1], shape[-2])
    return rule.view or shape


def _rows(
    tensor: CheckpointTensor, rule: TensorRule, start: int, stop: int
) -> np.ndarray[Any, Any]:
    """Rows [start, stop) in writing order. Chosen ones come out of the span that holds them, if
    that is not much larger."""
    shape = _rearranged(rule)
    row = shape[-1:] if len(shape) > 1 else ()
    n = math.prod(row)
    if tensor.is_stored and not rule.transposed:
        if rule.rows is None:
            return tensor.values(start * n, stop * n).reshape(-1, *row)
        chosen = rule.rows()[start:stop]
        first, end = int(chosen.min()), int(chosen.max()) + 1
        if end - first <= _LARGEST_SPAN * len(chosen):
            return tensor.values(first * n, end * n).reshape(-1, *row)[chosen - first]
    values = tensor.array()
    values = (values.swapaxes(-1, -2) if rule.transposed else values).reshape(-1, *row)
    return values[start:stop] if rule.rows is None else values[rule.rows()[start:stop]]


def map_tensors(
    rules: Iterable[TensorRule],
    found: Mapping[str, CheckpointTensor],
    arch: str,
    source: str,
) -> tuple[list[MappedTensor], list[str]]:
    """The tensors that a family's rules make of the checkpoint's, and notes on what is left out.

    Every tensor is there, with its shape. ``source``: what messages call the configuration. Raises
    ``CheckpointError``.
    """
    used: set[str] = set()
    unneeded: dict[str, list[str]] = {}
    made: list[MappedTensor] = []
    for usual in rules:
        rule = _stored(usual, found)
        used.update(_names(rule))
        if rule.unless:
            unneeded.setdefault(rule.unless, []).extend(
                n for n in rule.sources if n in found
            )
            continue
        tensors = _sources(rule, found, source, usual.hint)
        if tensors is not None:
            made.append(
                MappedTensor(
                    usual.target or gguf_name(arch, usual.sources[0]), tensors, rule
                )
            )
    notes = [
        f"{_listed(names)} left out: {why}" for why, names in unneeded.items() if names
    ]
    return made, notes + _mixed(made) + _left_over(found, used, source, arch)


def _names(rule: TensorRule) -> tuple[str, ...]:
    """The checkpoint's tensors that a rule reads."""
    return rule.sources if rule.scales is None else (*rule.sources, rule.scales)


def _sources(
    rule: TensorRule, found: Mapping[str, CheckpointTensor], source: str, hint: str
) -> tuple[CheckpointTensor, ...] | None:
    """The tensors of a rule, checked; None where it is optional and all are missing. ``hint``: the
    end of the message about a missing one."""
    names = _names(rule)
    tensors = tuple(found[name] for name in names if name in found)
    if names and not tensors and rule.optional:
        return None
    missing = next((name for name in names if name not in found), None)
    if missing is not None:
        raise CheckpointError(
            f"{source}: the model needs the tensor {missing}, which is not there{hint}"
        )
    if rule.scales is not None:
        _check_packed(tensors, rule, source)
        return tensors
    for tensor in tensors:
        _check(tensor, rule, source)
    return tensors


def _mixed(made: Iterable[MappedTensor]) -> list[str]:
    """A note on tensors that are stacked from several dtypes."""
    mixed = [tensor for tensor in made if tensor.is_mixed]
    if not mixed:
        return []
    names = [tensor.name for tensor in mixed]
    dtypes = ", ".join(
        sorted({part.dtype for tensor in mixed for part in tensor.tensors})
    )
    note = f"{_listed(names)} of several dtypes in the checkpoint ({dtypes})"
    return [f"{note}: float32 is taken, which holds the values of each"]


def _left_over(
    found: Mapping[str, CheckpointTensor], used: set[str], source: str, arch: str
) -> list[str]:
    """A note on tensors that no rule reads.

    Raises CheckpointError for the bias of a tensor that is read.
    """
    unknown = sorted(
        n for n in found.keys() - used if not n.endswith(_DERIVED_SUFFIXES)
    )
    biases = [n for n in unknown if f"{n.removesuffix('bias')}weight" in used]
    _check_biases(biases, found, source, arch)
    if not unknown:
        return []
    shown = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
    return [
        f"{len(unknown)} tensors are not part of this architecture and were left out: {shown}"
    ]


def _listed(names: list[str]) -> str:
    """The first and how many more, with the verb."""
    return (
        f"{names[0]} and {len(names) - 1} more are"
        if len(names) > 1
        else f"{names[0]} is"
    )


def _stored(rule: TensorRule, found: Mapping[str, CheckpointTensor]) -> TensorRule:
    """The first of a rule's forms whose names and shape the checkpoint has, else the first whose
    names it has, else ``rule``: messages speak of that one."""
    forms = [rule]
    while forms[-1].instead is not None:
        forms.append(forms[-1].instead)
    there = [form for form in forms if all(name in found for name in form.sources)]
    fitting = (form for form in there if found[form.sources[0]].shape == form.shape)
    return next(fitting, there[0] if there else rule)


def taken_scalars(
    wanted: dict[str, list[str]], found: dict[str, CheckpointTensor], source: str
) -> dict[str, list[float]]:
    """The values of tensors of one value each, which are taken out of ``found``. Raises
    ``CheckpointError``."""
    values: dict[str, list[float]] = {}
    for key, names in wanted.items():
        for name in names:
            tensor = found.pop(name, None)
            if tensor is None or math.prod(tensor.shape) != 1:
                raise CheckpointError(
                    f"{source}: the model needs the tensor {name} of one value"
                )
            value = tensor.array().reshape(-1)
            values.setdefault(key, []).append(
                float((bfloat16_values(value) if tensor.dtype == "BF16" else value)[0])
            )
    return values


def _check_biases(
    names: Iterable[str], found: Mapping[str, CheckpointTensor], source: str, arch: str
) -> None:
    """Raises ``CheckpointError`` for a bias that llama.cpp does not add, unless it adds nothing."""
    for name in names:
        if name.endswith(".bias") and found[name].array()[...].any():
            raise CheckpointError(
                f"{source}: the model has {name}, and llama.cpp's architecture {arch} adds no bias "
                "there"
            )


def _check_packed(
    tensors: tuple[CheckpointTensor, ...], rule: TensorRule, source: str
) -> None:
    """MXFP4: bytes of two values, and a byte of an exponent for 32 of them."""
    for tensor, shape in zip(tensors, (rule.shape, rule.shape[:-1]), strict=True):
        _check_shape(tensor, shape, source)
        if tensor.dtype != "U8":
            raise CheckpointError(
                f"{tensor.path}: tensor {tensor.name} has dtype {tensor.dtype}; MXFP4 is stored as "
                "U8"
            )


def _check_shape(tensor: CheckpointTensor, shape: tuple[int, ...], source: str) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} has the shape {list(tensor.shape)}; {source} "
            f"implies {list(shape)}"
        )


def _check(tensor: CheckpointTensor, rule: TensorRule, source: str) -> None:
    _check_shape(tensor, rule.shape, source)
    if tensor.dtype not in _GGML_TYPE:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} has dtype {tensor.dtype}; known: "
            f"{', '.join(_GGML_TYPE)}"
        )


#: Architectures that the ``gguf`` package does not know → one whose tensors are called alike.
_NAMED_AS = {"laguna": "step35", "muse-glimmer": "afmoe"}


def gguf_name(arch: str, name: str) -> str:
    """What the ``gguf`` package calls a checkpoint's tensor. Raises ``CheckpointError`` if it does
    not know it."""
    layer = _LAYER_NUMBER.search(name)
    plain = _EXPERT_NUMBER.sub(".experts.", _LAYER_NUMBER.sub(".0.", name, count=1))
    known = _names_of_one_layer(arch).get_name(plain, try_suffixes=(".weight", ".bias"))
    if known is None:
        raise CheckpointError(
            f"the gguf package has no name for the tensor {name} in the architecture {arch}"
        )
    return str(known).replace("blk.0.", f"blk.{layer[1]}.", 1) if layer else str(known)


@cache
def _names_of_one_layer(arch: str) -> TensorNameMap:
    from ggext.gguf.tables import constants, tensor_mapping

    known = _NAMED_AS.get(arch, arch)
    number = next(
        number for number, name in constants.MODEL_ARCH_NAMES.items() if name == known
    )
    return tensor_mapping.get_tensor_name_map(number, 1)
