"""Float8 checkpoints that are not known, and scales that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from float8_checkpoints import COMPRESSED, FP8, blocks, ggext, quantized

from ggext.checkpoint.config import Config
from ggext.checkpoint.float8 import weights_of
from ggext.checkpoint.weights import read_tensors
from ggext.errors import CheckpointError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("fp8", "quantization_config is \"'fp8'\", expected an object"),
        (
            {"quant_method": "gptq", "bits": 4},
            "has quant_method 'gptq', which ggext does not read",
        ),
        (
            {"quant_method": "awq"},
            "take the unquantized model, and quantize with --type TYPE",
        ),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes'"),
        ({}, None),
        ({"bits": 4}, "has quant_method ''"),
        ({"quant_method": 8}, "quant_method is '8', expected str"),
        (
            FP8 | {"weight_block_size": [128]},
            "weight_block_size is '[128]', expected two whole numbers",
        ),
        (FP8 | {"weight_block_size": [0, 128]}, "expected two whole numbers"),
        (
            FP8 | {"weight_block_size": [64, 64]},
            "it must be one of [1], [256, 1], [4, 6]",
        ),
        (
            COMPRESSED | {"format": "pack-quantized"},
            "compressed-tensors of the format 'pack-quantized'",
        ),
        (COMPRESSED | {"config_groups": {}}, "compressed-tensors of the format"),
        (COMPRESSED | {"config_groups": {"a": 1}}, "compressed-tensors of the format"),
        (COMPRESSED, "is F8_E4M3 without a scale"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    plain: Path, tmp_path: Path, config: Any, message: str | None
) -> None:
    folder = quantized(plain, tmp_path / "fp8", config, "_scale_inv", blocks)
    result = ggext("convert", folder, tmp_path / "x.gguf")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert (message or "quantization_config is missing") in result.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_scales_that_are_no_scales(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weight, scale = torch.zeros(4, 4, dtype=torch.float8_e4m3fn), torch.ones(1)
    for tensors, message in (
        (
            {"w": weight, "w_scale_inv": torch.ones(1, dtype=torch.int32)},
            "the scale w_scale_inv is I32",
        ),
        ({"w": weight, "w_scale_inv": torch.ones(3)}, "has the shape [3]; for [4, 4]"),
        (
            {"w": weight.reshape(2, 2, 4), "w_scale_inv": scale},
            "is F8_E4M3 [2, 2, 4], not a matrix",
        ),
        (
            {"w": weight[0].clone(), "w_scale_inv": scale},
            "is F8_E4M3 [4], not a matrix",
        ),
    ):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            weights_of(
                read_tensors(tmp_path),
                Config({"quantization_config": FP8}, "config.json"),
            )
        assert message in str(caught.value)
