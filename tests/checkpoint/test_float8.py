"""Float8 checkpoints: the values that the scales next to them give, against PyTorch's and
transformers' own."""

from __future__ import annotations

import json
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_rows import ROWS
from float8_checkpoints import COMPRESSED, FP8, blocks, ggext, quantized
from tiny import make_model

from ggext.checkpoint.config import Config, read_config
from ggext.checkpoint.float8 import weights_of
from ggext.checkpoint.float8_codes import float8_values
from ggext.checkpoint.weights import read_tensors
from ggext.gguf.open import read_gguf
from ggext.verify import verify

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("name", "dtype"), [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")]
)
def test_every_code_is_what_pytorch_reads(name: str, dtype: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(getattr(torch, dtype))
    np.testing.assert_array_equal(float8_values(name), codes.float().numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_blocks_as_transformers_reads_them(
    plain: Path, tmp_path: Path, dtype: str
) -> None:
    from safetensors.torch import load_file
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    folder = quantized(plain, tmp_path / "fp8", FP8, "_scale_inv", blocks, dtype=dtype)
    stored = load_file(folder / "model.safetensors")
    found = weights_of(read_tensors(folder), read_config(folder))
    assert set(found) == {
        n for n in stored if not n.endswith(("_scale_inv", "input_scale"))
    }
    for name, tensor in found.items():
        expected = stored[name]
        if name + "_scale_inv" in stored:
            judge = Fp8Dequantize(None)
            expected = judge._dequantize_one(
                expected, stored[name + "_scale_inv"], getattr(torch, dtype)
            )
            assert tensor.dtype == {"bfloat16": "BF16", "float32": "F32"}[dtype]
            assert tensor.nbytes == expected.nbytes
        bits = (
            expected.view(torch.uint16)
            if expected.dtype == torch.bfloat16
            else expected
        )
        np.testing.assert_array_equal(tensor.array()[:], bits.numpy())


@pytest.mark.parametrize(
    ("config", "suffix", "scale_of"),
    [
        (FP8 | {"weight_block_size": None}, "_scale_inv", lambda *_: (1,)),
        (
            FP8 | {"weight_block_size": [96, 100]},
            "_scale_inv",
            lambda r, c: (-(-r // 96), -(-c // 100)),
        ),
        (COMPRESSED, "_scale", lambda r, _: (r, 1)),
        (COMPRESSED, "_scale", lambda *_: (1,)),
    ],
    ids=["tensor", "cut-blocks", "channel", "compressed-tensor"],
)
@pytest.mark.parametrize("float8", ["float8_e4m3fn", "float8_e5m2"])
def test_scales_of_every_layout(
    plain: Path,
    tmp_path: Path,
    config: dict[str, Any],
    suffix: str,
    scale_of: Any,
    float8: str,
) -> None:
    from safetensors.torch import load_file

    folder = quantized(
        plain, tmp_path / "fp8", config, suffix, scale_of, float8=getattr(torch, float8)
    )
    stored = load_file(folder / "model.safetensors")
    block = config.get("weight_block_size")
    for name, tensor in weights_of(read_tensors(folder), read_config(folder)).items():
        scale = stored.get(name + suffix)
        if scale is None:
            continue
        rows, columns = tensor.shape
        each = block or (rows // scale.shape[0], columns)
        grid = (
            scale.reshape(scale.shape[0], -1)
            .repeat_interleave(each[0], 0)
            .repeat_interleave(each[1], 1)
        )
        expected = (stored[name].float() * grid[:rows, :columns]).bfloat16()
        array = tensor.array()
        np.testing.assert_array_equal(array[:], expected.view(torch.uint16).numpy())
        some = np.array([5, 3, rows - 1])
        np.testing.assert_array_equal(array[some], array[:][some])


def test_the_file_is_that_of_the_values(plain: Path, tmp_path: Path) -> None:
    """Converted from float8, and from the bfloat16 values saved as such: the same tensors."""
    folder = quantized(plain, tmp_path / "fp8", FP8, "_scale_inv", blocks)
    dense = {
        name: torch.from_numpy(tensor.array()[:].copy()).view(torch.bfloat16)
        for name, tensor in weights_of(
            read_tensors(folder), read_config(folder)
        ).items()
    }
    assert ggext("convert", folder, tmp_path / "a.gguf", "--yarn", 4).exit_code == 0
    twin = without_quantization(folder, tmp_path / "twin", dense)
    assert ggext("convert", twin, tmp_path / "b.gguf", "--yarn", 4).exit_code == 0
    assert_same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")


def without_quantization(folder: Path, twin: Path, tensors: dict[str, Any]) -> Path:
    """The checkpoint in ``folder`` with ``tensors`` as its weights."""
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(folder, twin)
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(
        json.dumps(config | {"quantization_config": None})
    )
    save_file(tensors, twin / "model.safetensors", {"format": "pt"})
    return twin


def assert_same_tensors(a: Path, b: Path) -> None:
    one, two = read_gguf(a), read_gguf(b)
    assert list(one.tensors) == list(two.tensors)
    assert all(
        bytes(one.tensor_data(n)) == bytes(two.tensor_data(n)) for n in two.tensors
    )


def test_deepseek_3_as_it_is_published(tmp_path: Path) -> None:
    """Experts that are stacked, latents that are parted, blocks that the edge cuts: the values are
    PyTorch's, and the logits those of transformers with these values."""
    pytest.importorskip("llama_cpp")
    from safetensors.torch import load_file

    row = ROWS["deepseek_v3-mscale"]
    plain = make_model(tmp_path / "plain", row.model_type, **row.config)
    folder = quantized(
        plain,
        tmp_path / "fp8",
        FP8 | {"weight_block_size": [32, 40]},
        "_scale_inv",
        grid,
    )
    stored = load_file(folder / "model.safetensors")
    dense = {}
    for name, weight in stored.items():
        if name + "_scale_inv" in stored:
            scale = (
                stored[name + "_scale_inv"]
                .repeat_interleave(32, 0)
                .repeat_interleave(40, 1)
            )
            dense[name] = weight.float() * scale[: weight.shape[0], : weight.shape[1]]
        elif not name.endswith(("_scale_inv", "input_scale")):
            dense[name] = weight
    assert {
        name.rsplit(".", 2)[-2] for name in stored if name.endswith("_scale_inv")
    } >= {
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "gate_proj",
        "down_proj",
    }
    twin = without_quantization(folder, tmp_path / "twin", dense)
    assert ggext("convert", folder, tmp_path / "a.gguf").exit_code == 0
    assert ggext("convert", twin, tmp_path / "b.gguf").exit_code == 0
    assert_same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert verify(
        tmp_path / "a.gguf", twin, levels=("table", "logits"), tolerance=row.bound
    ).passed


def grid(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // 32), -(-columns // 40)


def test_what_only_the_part_for_text_says(plain: Path, tmp_path: Path) -> None:
    folder = quantized(plain, tmp_path / "fp8", FP8, "_scale_inv", blocks)
    stated = weights_of(read_tensors(folder), read_config(folder))
    text = Config(
        {
            "dtype": None,
            "text_config": {"quantization_config": FP8, "dtype": "bfloat16"},
        },
        "config.json",
    )
    assert weights_of(read_tensors(folder), text) == stated


def test_transformers_judges_what_the_weights_stand_for(
    plain: Path, tmp_path: Path
) -> None:
    """Its own float8 needs a GPU, and would compute in bfloat16."""
    pytest.importorskip("llama_cpp")
    folder = quantized(plain, tmp_path / "fp8", FP8, "_scale_inv", blocks)
    assert ggext("convert", folder, tmp_path / "a.gguf", "--yarn", 4).exit_code == 0
    result = ggext(
        "verify", tmp_path / "a.gguf", "--reference", folder, "--level", "table,logits"
    )
    if find_spec("accelerate"):
        assert result.exit_code == 0, result.output
        assert "logits  ok" in result.output
    else:
        assert result.exit_code == 1
        assert (
            "requires accelerate (`pip install accelerate`)"
            in result.stderr.splitlines()[-1]
        )


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    rows = 40_000
    weight = torch.zeros(rows, 512, dtype=torch.float8_e4m3fn)
    save_file(
        {"w": weight, "w_scale_inv": torch.ones(blocks(rows, 512))},
        tmp_path / "model.safetensors",
    )
    tensor = weights_of(
        read_tensors(tmp_path), Config({"quantization_config": FP8}, "config.json")
    )["w"]
    array = tensor.array()
    tracemalloc.start()
    for start in range(0, rows, 1000):
        array[start : start + 1000]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < tensor.nbytes / 8
