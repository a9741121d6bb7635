"""Checkpoints that tests change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggext.convert import ConvertOptions, convert, plan
from ggext.errors import GgextError
from ggext.gguf.open import read_gguf

numpy_files = pytest.importorskip("safetensors.numpy")


Tensors = dict[str, "np.ndarray[Any, Any]"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def load(folder: Path) -> Tensors:
    tensors: Tensors = numpy_files.load_file(folder / WEIGHTS)
    return tensors


def save(tensors: Tensors, path: Path) -> None:
    numpy_files.save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, path
    )


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def converted(folder: Path, out: Path) -> tuple[dict[str, bytes], str]:
    """The tensors' data by their GGUF names, and the notes in one text."""
    done = convert(ConvertOptions(folder, out, force=True))
    gguf = read_gguf(out)
    data = {name: bytes(gguf.tensor_data(name)) for name in gguf.tensors}
    return data, "\n".join(done.notes)


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(GgextError) as error:
        plan(ConvertOptions(folder, out))
    assert "\n" not in str(error.value)
    return str(error.value)


def adapter(tensors: Tensors, prefix: str = "") -> Tensors:
    parts = {}
    for name, values in tensors.items():
        if name.endswith("q_proj.weight"):
            module = prefix + name.removesuffix(".weight")
            parts[f"{module}.lora_A.default.weight"] = np.ones(
                (4, values.shape[1]), "<f4"
            )
            parts[f"{module}.lora_B.default.weight"] = np.ones(
                (values.shape[0], 4), "<f4"
            )
    return parts


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "some/base-model"}
