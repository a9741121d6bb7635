"""Pickled checkpoints (``pytorch_model.bin``), read with PyTorch's weights-only loader and nothing else.

A pickle can run code when it is loaded; the weights-only loader builds tensors and refuses the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import CheckpointTensor
from ggext.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np

_DTYPES = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


@dataclass(frozen=True)
class PickledTensor(CheckpointTensor):
    """``tensor``: mapped from the file by PyTorch, so its values are read when they are used."""

    tensor: Any = field(repr=False, compare=False)

    def array(self) -> np.ndarray[Any, Any]:
        import torch

        bits = self.tensor.contiguous()
        array: np.ndarray[Any, Any] = bits.view(torch.uint16).numpy() if self.dtype == "BF16" else bits.numpy()
        return array


def read_pickle(path: Path) -> Iterator[PickledTensor]:
    """The tensors of one file. Raises ``CheckpointError`` for a file that holds anything else."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch", f"reading the pickled checkpoint {path.name}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - whatever a hostile pickle makes the loader raise
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise CheckpointError(f"{path} is not a plain checkpoint of tensors: {reason}; use safetensors") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path} does not hold tensors by name; use safetensors")
    for name, tensor in state.items():
        dtype = _DTYPES.get(str(tensor.dtype), str(tensor.dtype))
        yield PickledTensor(str(name), dtype, tuple(tensor.shape), path, 0, tensor.nbytes, tensor)
