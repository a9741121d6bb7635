"""llama.cpp's quantizer, in a child process: it aborts on some weights, which are a stranger's.

Finite weights near float32's limit end it in IQ3_S, whose search then leaves its grid. The child
writes into a file that is there already, so that whatever becomes of it the parent clears up.
"""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import EngineDiedError, UsageError
from ggext.runtime import child, llama

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def quantize(
    src: Path,
    dst: Path,
    type_name: str,
    *,
    tensor_types: Mapping[str, int] | None = None,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    source_name: str = "",
) -> None:
    """Writes the GGUF file `src` quantized to `type_name` (see `quantization_names`) as `dst`.

    `tensor_types`: ggml types that tensors must have whatever the quantization makes of them, by
    name; llama.cpp keeps to that where it can. `imatrix`: the importance of each column of a
    tensor, by its name. `source_name`: what errors call `src`. `dst` appears only when whole, and
    replaces what was there. Raises UsageError for an unknown type, GgufError for a malformed `src`,
    ModelError when llama.cpp refuses, EngineDiedError when it dies of the weights, OutputError when
    `dst` cannot be written.
    """
    from ggext.gguf.writer import replacing

    types = llama.quantizations()
    if type_name.upper() not in types:
        raise UsageError(
            f"unknown quantization {type_name!r}: choose one of {', '.join(types)}"
        )
    llama.check_gguf(src)
    with (
        tempfile.TemporaryDirectory(prefix="ggext-") as folder,
        replacing(dst) as beside,
    ):
        importance = _write_importance(Path(folder, "importance.npz"), imatrix)
        source = str(src.absolute())
        target = str(beside.path.absolute())
        arguments = (
            source,
            target,
            type_name.upper(),
            dict(tensor_types or {}),
            importance,
        )
        if child.is_child() or child.is_unwanted():
            run(*arguments)
            return
        try:
            child.call("ggext.runtime.quantizer:run", *arguments)
        except EngineDiedError as death:
            cause = (
                "its weights or the importance matrix" if importance else "its weights"
            )
            raise EngineDiedError(
                f"{source_name or src} is not quantized to {type_name}: {death}; {cause} are "
                "damaged or made to do this, unless memory ran out: get it again, or take another "
                "type",
                death.signal,
                death.status,
            ) from None


def run(
    src: str,
    dst: str,
    type_name: str,
    tensor_types: Mapping[str, int],
    imatrix: str,
) -> None:
    """Quantizes into the file `dst`, in this process. `imatrix`: an .npz of the importance by
    tensor's name, empty for none. Raises ModelError when llama.cpp refuses."""
    module = llama.lib("quantizing with llama.cpp")
    params = module.llama_model_quantize_default_params()
    params.ftype = llama.quantizations()[type_name]
    if tensor_types:
        params.tt_overrides = _tensor_overrides(module, tensor_types)
    means = (
        _read_importance(Path(imatrix)) if imatrix else {}
    )  # llama.cpp gets pointers into it
    if means:
        params.imatrix = _importance(module, means)
    llama.clear_log()
    status = module.llama_model_quantize(
        os.fsencode(src), os.fsencode(dst), ctypes.byref(params)
    )
    if status != 0:
        raise llama.failure(f"{src} cannot be quantized to {type_name}")


def _write_importance(
    path: Path, matrix: Mapping[str, NDArray[np.float32]] | None
) -> str:
    """The names of arrays in hexadecimal: they are a stranger's, and become names of files."""
    import numpy as np

    if not matrix:
        return ""
    arrays: dict[str, Any] = {_name_bytes(name).hex(): matrix[name] for name in matrix}
    np.savez(path, **arrays)
    return str(path)


def _read_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {
            bytes.fromhex(name).decode(
                "utf-8", "surrogateescape"
            ): np.ascontiguousarray(arrays[name], np.float32)
            for name in arrays.files
        }


def _tensor_overrides(module: Any, types: Mapping[str, int]) -> Any:
    """An array with an end mark, of patterns that match one name each."""
    override = module.llama_model_tensor_override
    overrides = [
        override(_name_bytes(f"^{re.escape(name)}$"), kind)
        for name, kind in types.items()
    ]
    return (override * (len(overrides) + 1))(*overrides, override(None, 0))


def _importance(module: Any, matrix: Mapping[str, NDArray[np.float32]]) -> Any:
    entry = module.llama_model_imatrix_data
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [
        entry(_name_bytes(name), means.ctypes.data_as(pointer), means.size)
        for name, means in matrix.items()
    ]
    return (entry * (len(entries) + 1))(*entries, entry(None, None, 0))


def _name_bytes(name: str) -> bytes:
    """As the reader decoded them: names need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")
