"""gpt-oss as it is published: experts in MXFP4, packed otherwise in a GGUF file, the same values
bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.convert.mapped_tensor import ggml_mxfp4
from ggext.errors import CheckpointError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import MXFP4
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("transformers")

CONFIG: dict[str, Any] = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
}
YARN = RopeScaling("yarn", factor=4)


def pack(folder: Path, twin: Path) -> None:
    """Random MXFP4 in place of the experts of the model in ``folder``; ``twin`` gets the values
    that transformers makes of them."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = load_file(folder / "model.safetensors")
    packed, plain = dict(tensors), dict(tensors)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        count, columns, rows = packed.pop(name).shape
        blocks = torch.randint(
            0, 256, (count, rows, columns // 32, 16), dtype=torch.uint8
        )
        scales = torch.randint(
            121, 125, (count, rows, columns // 32), dtype=torch.uint8
        )
        plain[name] = convert_moe_packed_tensors(
            blocks, scales, dtype=torch.float32
        ).contiguous()
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    twin.mkdir()
    for path in folder.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    save_file(plain, twin / "model.safetensors", {"format": "pt"})
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}})
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A packed checkpoint and its twin in float32."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    make_model(folder / "packed", "gpt_oss", **CONFIG)
    pack(folder / "packed", folder / "twin")
    return folder / "packed", folder / "twin"


def values(gguf: GgufFile, name: str) -> np.ndarray[Any, Any]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    info = gguf.tensors[name]
    rows = np.frombuffer(gguf.tensor_data(name), np.uint8).reshape(
        *info.shape[:0:-1], -1
    )
    return dequantize(rows, GGMLQuantizationType(info.type))


@pytest.mark.parametrize("kind", ["auto", "f16", "q8_0"])
def test_every_value_is_the_one_that_transformers_makes(
    checkpoints: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    """Whatever the type of the other tensors."""
    packed, twin = checkpoints
    convert(ConvertOptions(packed, tmp_path / "packed.gguf", YARN, type=kind))
    convert(ConvertOptions(twin, tmp_path / "twin.gguf", YARN))
    one, other = read_gguf(tmp_path / "packed.gguf"), read_gguf(tmp_path / "twin.gguf")
    found = [name for name, info in one.tensors.items() if info.type == MXFP4]
    assert found == [
        f"blk.{i}.ffn_{part}_exps.weight"
        for i in (0, 1)
        for part in ("gate", "up", "down")
    ]
    for name in found:
        assert np.array_equal(
            values(one, name), other.float_tensor(name).reshape(values(one, name).shape)
        ), name


def test_transformers_judges_what_the_blocks_stand_for(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    convert(ConvertOptions(checkpoints[0], tmp_path / "packed.gguf", YARN))
    report = verify(
        tmp_path / "packed.gguf",
        checkpoints[0],
        levels=("table", "logits"),
        tolerance=1e-2,
    )
    assert report.passed, report
    assert len([check for check in report.checks if check.level == "logits"]) == 2


def test_a_block_by_hand() -> None:
    """Neighbours 0 and 1 of byte 0 stand in bytes 0 and 1, whose upper halves have the values 16
    and 17."""
    blocks = np.zeros((1, 1, 16), np.uint8)
    blocks[0, 0, 0], blocks[0, 0, 8] = 0x21, 0x43
    packed = ggml_mxfp4(blocks, np.array([[127]], np.uint8))
    assert packed.tolist() == [[127, 0x31, 0x42] + [0] * 14]


def test_logits(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    """ggml multiplies MXFP4 with activations that it rounds to 8 bits, which costs some 1e-3
    nats."""
    pytest.importorskip("llama_cpp")
    from ggext.verify import verify

    packed, twin = checkpoints
    convert(ConvertOptions(packed, tmp_path / "packed.gguf", YARN))
    checks = verify(tmp_path / "packed.gguf", twin, levels=["logits"]).checks
    assert max(check.value for check in checks) <= 2e-2, checks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quant_method 'gptq', which ggext",
        ),
        ({"quantization_config": "mxfp4"}, "expected an object"),
        (
            {"swiglu_limit": 5.0},
            "swiglu_limit is 5.0; llama.cpp's architecture gpt-oss takes 7",
        ),
        ({"num_local_experts": 3}, r"has the shape \[4, 128\]; .* implies \[3, 128\]"),
        (
            {"intermediate_size": 192},
            r"blocks has the shape \[4, 320, 4, 16\]; .* implies \[4, 384, 4, 16\]",
        ),
    ],
)
def test_what_is_refused(
    checkpoints: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    for path in checkpoints[0].iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    config = json.loads((checkpoints[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        convert(ConvertOptions(tmp_path, tmp_path / "out.gguf", YARN))
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped"
)
def test_the_source_is_not_mapped_after_the_conversion(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    """A cache of the last tensors kept it, so that it could not be removed on Windows."""
    convert(ConvertOptions(checkpoints[0], tmp_path / "packed.gguf", YARN))
    assert str(checkpoints[0]) not in Path("/proc/self/maps").read_text()
