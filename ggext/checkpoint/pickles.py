"""Pickled checkpoints (``pytorch_model.bin``), read with PyTorch's weights-only loader and nothing
else.

A pickle can run code when it is loaded; the weights-only loader builds tensors and refuses the
rest. The archive around it is checked first: nothing in it is compressed, so that nothing grows
when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import CheckpointTensor, check_name
from ggext.errors import CheckpointError, MissingExtraError
from ggext.gguf.plain_files import open_plain

if TYPE_CHECKING:
    import numpy as np

_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}
_MAX_PICKLE = (
    64 << 20
)  # of the names and shapes, without the values: some 300,000 tensors


@dataclass(frozen=True)
class PickledTensor(CheckpointTensor):
    """``tensor``: mapped from the file by PyTorch, so its values are read when they are used."""

    tensor: Any = field(repr=False, compare=False)

    def array(self) -> np.ndarray[Any, Any]:
        import torch

        bits = self.tensor.contiguous()
        array: np.ndarray[Any, Any] = (
            bits.view(torch.uint16).numpy() if self.dtype == "BF16" else bits.numpy()
        )
        return array


def read_pickle(path: Path) -> Iterator[PickledTensor]:
    """The tensors of one file. Raises ``CheckpointError`` for a file that holds anything else."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError(
            "torch", "torch", f"reading the pickled checkpoint {path.name}"
        ) from None
    try:
        os.close(open_plain(path))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; check the file"
        ) from None
    _check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - whatever a hostile pickle makes the loader raise
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise CheckpointError(
            f"{path} is not a plain checkpoint of tensors: {reason}; use safetensors"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(v, torch.Tensor) for v in state.values()
    ):
        raise CheckpointError(f"{path} does not hold tensors by name; use safetensors")
    for name, tensor in state.items():
        check_name(str(name), path)
        if (
            tensor.layout is not torch.strided
            or tensor.is_quantized
            or _repeats(tensor)
        ):
            raise CheckpointError(
                f"{path}: tensor {name} is sparse, quantized or repeats its values; use safetensors"
            )
        dtype = _DTYPES.get(str(tensor.dtype), str(tensor.dtype))
        yield PickledTensor(
            str(name), dtype, tuple(tensor.shape), path, 0, tensor.nbytes, tensor
        )


def _repeats(tensor: Any) -> bool:
    """Whether the tensor has more values than the file holds for it (a stride of 0)."""
    return bool(
        tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    )


def _check_archive(path: Path) -> None:
    """Refuse an archive that is larger inside than outside: zip entries that are compressed or
    overlap."""
    import zipfile

    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; check the path"
        ) from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is no archive as PyTorch writes it since 1.6: {error}; save it again, or use "
            "safetensors"
        ) from None
    packed = any(
        e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size
        for e in entries
    )
    pickled = sum(e.file_size for e in entries if e.filename.endswith(".pkl"))
    if packed or sum(e.file_size for e in entries) > size or pickled > _MAX_PICKLE:
        raise CheckpointError(
            f"{path} is a packed archive: {sum(e.file_size for e in entries)} bytes in {size}, "
            f"{pickled} of them "
            "pickled; PyTorch writes no such file: use safetensors"
        )
