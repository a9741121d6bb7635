"""A family's rules, matched with the tensors that a checkpoint has."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from ggext.checkpoint.safetensors import CheckpointTensor, bfloat16_values
from ggext.convert.mapped_tensor import GGML_TYPE, INTEGERS, MappedTensor
from ggext.errors import CheckpointError

if TYPE_CHECKING:
    from gguf.tensor_mapping import TensorNameMap

    from ggext.converters.base import TensorRule


#: Buffers that old checkpoints carry and the model does not need.
_DERIVED_SUFFIXES = (
    "rotary_emb.inv_freq",
    "attn.masked_bias",
    "attn.bias",
    "attention.masked_bias",
    "attention.bias",
)
#: Architecture that the ``gguf`` package does not know → one whose tensors have the same names.
_NAMED_AS = {
    "deepseek32": "glm-dsa",
    "hy_v3": "dots1",
    "laguna": "step35",
    "minimax-m3": "minimax-m2",
    "muse-glimmer": "afmoe",
}
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
_EXPERT_NUMBER = re.compile(r"\.experts\.\d+\.")


def map_tensors(
    rules: Iterable[TensorRule],
    available: Mapping[str, CheckpointTensor],
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
        rule = _stored(usual, available)
        used.update(_names(rule))
        if rule.unless:
            unneeded.setdefault(rule.unless, []).extend(
                n for n in rule.sources if n in available
            )
            continue
        tensors = _sources(rule, available, source, usual.hint)
        if tensors is not None:
            made.append(
                MappedTensor(
                    usual.target or gguf_name(arch, usual.sources[0]), tensors, rule
                )
            )
    notes = [
        f"{_listed(names)} left out: {why}" for why, names in unneeded.items() if names
    ]
    return made, notes + _mixed(made) + _left_over(available, used, source, arch)


def _names(rule: TensorRule) -> tuple[str, ...]:
    """The checkpoint's tensors that a rule reads."""
    return (*rule.sources, *rule.scales)


def _sources(
    rule: TensorRule, available: Mapping[str, CheckpointTensor], source: str, hint: str
) -> tuple[CheckpointTensor, ...] | None:
    """The tensors of a rule, checked; None where it is optional and all are missing. ``hint``: the
    end of the message about a missing one."""
    names = _names(rule)
    tensors = tuple(available[name] for name in names if name in available)
    if names and not tensors and rule.optional:
        return None
    missing = next((name for name in names if name not in available), None)
    if missing is not None:
        raise CheckpointError(
            f"{source}: the model needs the tensor {missing}, which is not there{hint}"
        )
    if rule.scales:
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
    available: Mapping[str, CheckpointTensor], used: set[str], source: str, arch: str
) -> list[str]:
    """A note on tensors that no rule reads.

    Raises CheckpointError for the bias of a tensor that is read.
    """
    unknown = sorted(
        n for n in available.keys() - used if not n.endswith(_DERIVED_SUFFIXES)
    )
    biases = [n for n in unknown if f"{n.removesuffix('bias')}weight" in used]
    _check_biases(biases, available, source, arch)
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


def _stored(rule: TensorRule, available: Mapping[str, CheckpointTensor]) -> TensorRule:
    """The first of a rule's forms whose names and shape the checkpoint has, else the first whose
    names it has, else ``rule``: messages speak of that one."""
    forms = [rule]
    while forms[-1].instead is not None:
        forms.append(forms[-1].instead)
    there = [form for form in forms if all(name in available for name in form.sources)]
    fitting = (form for form in there if available[form.sources[0]].shape == form.shape)
    usual = there[0] if there else rule
    return next(fitting, usual)


def taken_scalars(
    names_by_key: dict[str, list[str]],
    available: dict[str, CheckpointTensor],
    source: str,
) -> dict[str, list[float]]:
    """The values of tensors of one value each, which are taken out of ``available``. Raises
    ``CheckpointError``."""
    values: dict[str, list[float]] = {}
    for key, names in names_by_key.items():
        for name in names:
            tensor = available.pop(name, None)
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
    names: Iterable[str],
    available: Mapping[str, CheckpointTensor],
    source: str,
    arch: str,
) -> None:
    """Raises ``CheckpointError`` for a bias that llama.cpp does not add, unless it adds nothing."""
    for name in names:
        if name.endswith(".bias") and available[name].array()[...].any():
            raise CheckpointError(
                f"{source}: the model has {name}, and llama.cpp's architecture {arch} adds no bias "
                "there"
            )


def _check_packed(
    tensors: tuple[CheckpointTensor, ...], rule: TensorRule, source: str
) -> None:
    """MXFP4: bytes of two values, and a byte of an exponent for 32 of them."""
    *matrices, last = rule.shape
    of_scales = tuple(matrices) if rule.arranged else (*matrices, last // 16)
    count = len(rule.sources)
    for part, shape, dtypes in (
        (tensors[:count], rule.shape, ("U8", "I8")),
        (tensors[count:], of_scales, ("U8", "F8_E8M0")),
    ):
        for tensor in part:
            _check_shape(tensor, shape, source)
            if tensor.dtype not in dtypes:
                raise CheckpointError(
                    f"{tensor.path}: tensor {tensor.name} has dtype {tensor.dtype}; MXFP4 is "
                    f"stored as {' or '.join(dtypes)}"
                )


def _check_shape(tensor: CheckpointTensor, shape: tuple[int, ...], source: str) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} has the shape {list(tensor.shape)}; {source} "
            f"implies {list(shape)}"
        )


def _check(tensor: CheckpointTensor, rule: TensorRule, source: str) -> None:
    _check_shape(tensor, rule.shape, source)
    known = tuple(INTEGERS) if rule.below else tuple(GGML_TYPE)
    if tensor.dtype not in known:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} has dtype {tensor.dtype}; known: "
            f"{', '.join(known)}"
        )


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
