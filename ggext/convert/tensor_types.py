"""Which type each tensor is written in: ``--type`` for all, ``--tensor-type PATTERN=TYPE`` for
some.

f32, f16, bf16 and q8_0 are made by ggext; everything else by llama.cpp's quantizer, from a file in
which the tensors have the types that they have in the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ggext.convert.model_source import SourceTensor
from ggext.errors import UsageError
from ggext.gguf.types import BF16, F16, F32, MXFP4, Q8_0, type_name

NATIVE = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0}
#: ggml type of most weights → general.file_type.
FILE_TYPES = {F32: 0, F16: 1, Q8_0: 7, BF16: 32, MXFP4: 38}
_FLOATS = (F32, F16, BF16)
_Q8_0_BLOCK = 32
#: What mixes residual streams, and what is added to scores by which tokens are made one: small, and
#: float32 in the checkpoints, whatever the rest is.
_NEVER_QUANTIZED = (
    ".hc_attn_fn.weight",
    ".hc_ffn_fn.weight",
    "output_hc_fn.weight",
    "_compressor_ape.weight",
)
#: llama.cpp computes with these in float32 whatever their dimensions (conversion/base.py of
#: llama.cpp says the same).
_KEPT_FLOAT32 = (
    *_NEVER_QUANTIZED,
    ".bias",
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "shortconv.conv.weight",
    "ssm_conv1d.weight",
)


@dataclass(frozen=True)
class TypePlan:
    """In which type each tensor is written."""

    # ggml's numbers, one a tensor.
    kinds: Sequence[int]
    # What llama.cpp's quantizer makes of that file; None: nothing.
    quantization: str | None = None
    # Tensors to which it must give, or leave, these types, by name.
    exact: Mapping[str, int] = field(default_factory=dict)
    # A line for each tensor that gets another type than was requested.
    notes: tuple[str, ...] = ()


def plan_types(
    tensors: Sequence[SourceTensor],
    requested: str,
    overrides: Sequence[str],
    is_gguf: bool,
) -> TypePlan:
    """``requested``: as ``--type``; ``overrides``: as ``--tensor-type``, the last that matches a
    tensor holds.

    Raises ``UsageError`` for types and patterns that mean nothing here.
    """
    chosen = _chosen(tensors, overrides)
    requested = requested.lower()
    by_llama_cpp = requested not in ("auto", *NATIVE) or any(
        kind not in NATIVE.values() for kind in chosen.values()
    )
    if by_llama_cpp:
        _check_quantization(requested)
    if is_gguf and requested != "auto":
        _refuse_quantized(tensors, f"type={requested!r}")
    if is_gguf:
        _refuse_quantized(
            [t for t in tensors if chosen.get(t.name, t.type) != t.type], "tensor_types"
        )
    own = "auto" if by_llama_cpp else requested
    requests = [_requested(t, own, chosen.get(t.name)) for t in tensors]
    kinds: list[int] = []
    notes: list[str] = []
    for tensor, kind in zip(tensors, requests, strict=True):
        whole = (
            kind != Q8_0 or tensor.type == Q8_0 or tensor.shape[0] % _Q8_0_BLOCK == 0
        )
        if whole:
            kinds.append(kind)
        else:
            kinds.append(F16)
            notes.append(
                f"{tensor.name} has rows of {tensor.shape[0]} values, not whole blocks of "
                f"{_Q8_0_BLOCK}: written as f16"
            )
    if not by_llama_cpp:
        return TypePlan(kinds, notes=tuple(notes))
    packed = {
        t.name: kind
        for t, kind in zip(tensors, kinds, strict=True)
        if t.type not in _FLOATS or t.name.endswith(_NEVER_QUANTIZED)
    }
    return TypePlan(kinds, requested.upper(), packed | chosen, tuple(notes))


def _chosen(
    tensors: Sequence[SourceTensor], overrides: Sequence[str]
) -> dict[str, int]:
    """The type of every tensor that an override names. One-dimensional ones are float32 always."""
    names = [t.name for t in tensors if len(t.shape) > 1]
    chosen: dict[str, int] = {}
    for override in overrides:
        pattern, equals, kind = override.partition("=")
        if not (pattern and equals and kind):
            raise UsageError(
                f"tensor_types {override}: write PATTERN=TYPE, for example 'output.weight=f16'"
            )
        matches = [
            n
            for n in names
            if fnmatchcase(n, pattern)
            or fnmatchcase(n.removesuffix(".weight"), pattern)
        ]
        if not matches:
            raise UsageError(
                f"tensor_types {override}: no tensor of two or more dimensions has such a name; "
                "there are "
                f"{names[0]}, {names[-1]} and {len(names) - 2} others (ggext inspect lists them)"
            )
        chosen |= dict.fromkeys(matches, _type_number(kind, override))
    return chosen


def _type_number(name: str, override: str) -> int:
    from ggext.gguf.tables import constants

    known = {kind.name: int(kind) for kind in constants.GGMLQuantizationType}
    if name.upper() not in known:
        mixed = (
            "; a mixture such as Q4_K_M is no type of one tensor"
            if name.upper().startswith("Q")
            else ""
        )
        raise UsageError(
            f"tensor_types {override}: the type {name} is unknown; known: {', '.join(known)}{mixed}"
        )
    return known[name.upper()]


def _check_quantization(requested: str) -> None:
    from ggext.runtime.llama import quantization_names

    names = quantization_names()
    if requested.upper() not in names:
        known = ", ".join(
            ["auto", *NATIVE, *(n for n in names if n.lower() not in NATIVE)]
        )
        raise UsageError(f"type={requested!r} is unknown; known: {known}")
    if requested in ("f32", "f16", "bf16"):
        raise UsageError(
            "tensor_types asks for a type that llama.cpp's quantizer makes, which "
            f"type={requested!r} does not start; choose one of its types, for example type='q8_0'"
        )


def _refuse_quantized(tensors: Sequence[SourceTensor], option: str) -> None:
    quantized = {t.type for t in tensors} - set(_FLOATS)
    if quantized:
        kinds = ", ".join(sorted(type_name(kind) for kind in quantized))
        raise UsageError(
            f"{option}: the file is quantized already ({kinds}) and would lose more; "
            "start from the checkpoint or an f16 file, or leave it out"
        )


def _requested(tensor: SourceTensor, requested: str, chosen: int | None) -> int:
    """The ggml type to write, where its blocks fit. Norms and biases stay float32, as llama.cpp's
    kernels expect."""
    if tensor.type not in _FLOATS:
        return tensor.type
    if chosen is not None and chosen in NATIVE.values():
        return chosen
    if len(tensor.shape) == 1 or tensor.name.endswith(_KEPT_FLOAT32):
        return tensor.type if tensor.is_gguf else F32
    return tensor.type if requested == "auto" else NATIVE[requested]


def check_made(made: Mapping[str, int], exact: Mapping[str, int]) -> None:
    """Raise ``UsageError`` where llama.cpp's quantizer gave a tensor (name → type) another type
    than it was asked."""
    for name, kind in exact.items():
        if made.get(name, kind) != kind:
            raise UsageError(
                f"tensor_types: llama.cpp made {name} {type_name(made[name])}, not "
                f"{type_name(kind)}: its rows are "
                "not whole blocks of that type, or it never quantizes this tensor"
            )
