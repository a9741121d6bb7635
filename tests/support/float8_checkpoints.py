"""Float8 checkpoints of every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggext.cli import main

torch = pytest.importorskip("torch")


FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "weights": {
                "num_bits": 8,
                "type": "float",
                "strategy": "channel",
                "symmetric": True,
            }
        }
    },
    "ignore": ["lm_head"],
}


def quantized(
    plain: Path,
    folder: Path,
    config: dict[str, Any],
    suffix: str,
    scale_of: Any,
    **other: Any,
) -> Path:
    """The checkpoint with float8 projections; ``scale_of``: (rows, columns) → the scales' shape."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(plain, folder)
    dtype = other.pop("float8", torch.float8_e4m3fn)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        tensors[name] = weight
        if name.endswith(("proj.weight", "proj_with_mqa.weight")):
            tensors[name] = (weight.float() * 300).clamp(-448, 448).to(dtype)
            shape = scale_of(*weight.shape)
            tensors[name + suffix] = torch.rand(shape, generator=generator) / 300 + 1e-4
            tensors[name.replace("weight", "input_scale")] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"quantization_config": config} | other
        )
    )
    return folder


def blocks(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // 128), -(-columns // 128)


def ggext(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments])
