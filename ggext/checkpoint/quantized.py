"""How a checkpoint is quantized, by its tensors: they are believed over what config.json says."""

from __future__ import annotations

from collections.abc import Iterable

from ggext.checkpoint.safetensors import CheckpointTensor

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_FLOATS = "take the unquantized model, and quantize with type=TYPE"
#: Ends of tensors' names and the dtype there → what made them, and how to get the floats.
_MADE_BY: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    ((".absmax", ".quant_map"), "", "bitsandbytes in 4 bits", _FLOATS),
    ((".SCB",), "", "bitsandbytes in 8 bits", _FLOATS),
    ((".q_weight", ".q_scale"), "I32", "EXL2", _FLOATS),
    ((".trellis",), "I16", "EXL3", _FLOATS),
    ((".W_q",), "", "HQQ", _FLOATS),
    ((".codes", ".codebooks"), "", "AQLM", _FLOATS),
    ((".Qidxs",), "", "QuIP#", _FLOATS),
)


def is_plain(tensors: Iterable[CheckpointTensor]) -> bool:
    """Whether every tensor is a plain float, which no quantization leaves."""
    return all(tensor.dtype in _PLAIN for tensor in tensors)


def packed_by(tensors: dict[str, CheckpointTensor]) -> tuple[str, str] | None:
    """What packed the weights, and how to get the floats; ``None`` where no tensor tells.

    A quantized module has a tensor of each ending, the first of the dtype."""
    for ends, dtype, name, remedy in _MADE_BY:
        for first, tensor in tensors.items():
            if not first.endswith(ends[0]) or (dtype and tensor.dtype != dtype):
                continue
            module = first.removesuffix(ends[0])
            if all(module + end in tensors for end in ends):
                return name, remedy
    return None
