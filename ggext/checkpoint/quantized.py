"""How a checkpoint is quantized, by its tensors: they are believed over what config.json says."""

from __future__ import annotations

from collections.abc import Iterable

from ggext.checkpoint.safetensors import CheckpointTensor

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
#: How to get the floats of what is not read.
UNQUANTIZED = "take the unquantized model, and quantize with type=TYPE"
#: Ends of tensors' names and the dtype there → what made them, and how to get the floats.
_MADE_BY: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    ((".absmax", ".quant_map"), "", "bitsandbytes in 4 bits", UNQUANTIZED),
    ((".SCB",), "", "bitsandbytes in 8 bits", UNQUANTIZED),
    ((".q_weight", ".q_scale"), "I32", "EXL2", UNQUANTIZED),
    ((".trellis",), "I16", "EXL3", UNQUANTIZED),
    ((".W_q",), "", "HQQ", UNQUANTIZED),
    ((".codes", ".codebooks"), "", "AQLM", UNQUANTIZED),
    ((".Qidxs",), "", "QuIP#", UNQUANTIZED),
    ((".B", ".s_channel"), "I32", "QQQ", UNQUANTIZED),
    ((".B", ".s"), "I32", "GPTQ and laid out for Marlin", UNQUANTIZED),
    ((".qweight", ".scales"), "I8", "GPTQ and laid out for BitBLAS", UNQUANTIZED),
    ((".qweight", ".scales"), "I32", "AWQ and laid out for Marlin", UNQUANTIZED),
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
