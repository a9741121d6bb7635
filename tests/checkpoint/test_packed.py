"""Packed weights: the floats that are read against those that each format's own definition gives,
packed here value by value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_checkpoints import COMPRESSED_TENSORS, FORMS, mlx, pack, symmetric
from tiny import make_llama, make_model

from ggext.checkpoint.config import Config
from ggext.checkpoint.float8 import weights_of
from ggext.checkpoint.weights import read_tensors
from ggext.convert import ConvertOptions, convert
from ggext.errors import CheckpointError
from ggext.gguf.open import read_gguf

pytest.importorskip("transformers")

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # All sizes are multiples of 64, as gemv_fast must have them.
    return make_llama(
        tmp_path_factory.mktemp("packed") / "plain", intermediate_size=192
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_floats_are_the_formats(form: str, plain: Path, tmp_path: Path) -> None:
    folder, floats = pack(plain, tmp_path / "packed", form)
    config = Config(json.loads((folder / "config.json").read_text()), "config.json")
    found = weights_of(read_tensors(folder), config)
    assert found.keys() == read_tensors(plain).keys()
    for name, expected in floats.items():
        values = found[name].array()
        assert found[name].shape == expected.shape
        np.testing.assert_allclose(values[:], expected, rtol=2e-7, atol=1e-9)
        chosen = np.array([3, 1, 2])
        np.testing.assert_array_equal(values[chosen], values[:][chosen])
        np.testing.assert_array_equal(values[8:24], values[:][8:24])


@pytest.mark.parametrize(
    "form", ["int4", "gptq-3", "awq", "awq-gemv-fast", "mlx", "mlx-5", "nvfp4"]
)
def test_the_file_is_that_of_the_floats(form: str, plain: Path, tmp_path: Path) -> None:
    """Through the families' rules, with rows in another order."""
    import torch
    from safetensors.torch import load_file, save_file

    folder, floats = pack(plain, tmp_path / "packed", form)
    convert(ConvertOptions(folder, tmp_path / "packed.gguf"))
    weights = load_file(plain / "model.safetensors")
    weights |= {
        name: torch.from_numpy(values.astype("f4")) for name, values in floats.items()
    }
    other = Path(shutil.copytree(plain, tmp_path / "other"))
    save_file(
        {name: w.contiguous() for name, w in weights.items()},
        other / "model.safetensors",
    )
    convert(ConvertOptions(other, tmp_path / "floats.gguf"))
    packed, same = (
        read_gguf(tmp_path / f"{name}.gguf") for name in ("packed", "floats")
    )
    assert packed.tensors.keys() == same.tensors.keys()
    for name in same.tensors:
        one, two = (
            np.frombuffer(file.tensor_data(name), "<f4") for file in (packed, same)
        )
        np.testing.assert_allclose(one, two, rtol=2e-7, atol=1e-9)


def test_experts_of_kimi_as_they_are_published(tmp_path: Path) -> None:
    """INT4 in groups of 32, under the names of a model that sees too."""
    import torch
    from family_rows import ROWS
    from safetensors.torch import load_file, save_file

    config = ROWS["kimi_k25"].config | {"moe_intermediate_size": 64}
    folder = make_model(tmp_path / "kimi", "kimi_k25", **config)
    tensors, floats = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if ".mlp.experts." not in name:
            tensors[name] = weight
            continue
        parts, floats[name] = symmetric(*weight.shape, 4, 32)
        tensors |= {
            name.replace("weight", k): torch.from_numpy(v) for k, v in parts.items()
        }
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["text_config"]["quantization_config"] = {
        **COMPRESSED_TENSORS,
        "format": "pack-quantized",
    }
    path.write_text(json.dumps(values))
    convert(ConvertOptions(folder, tmp_path / "out.gguf"))
    gguf = read_gguf(tmp_path / "out.gguf")
    written = np.frombuffer(gguf.tensor_data("blk.1.ffn_up_exps.weight"), "<f4")
    expected = [
        floats[f"language_model.model.blocks.1.mlp.experts.{i}.up_proj.weight"]
        for i in range(8)
    ]
    np.testing.assert_allclose(written, np.stack(expected).ravel(), rtol=2e-7)


def test_experts_that_mlx_stacked(tmp_path: Path) -> None:
    import torch
    from family_rows import ROWS
    from safetensors.torch import load_file, save_file

    config = ROWS["qwen3_moe"].config | {"moe_intermediate_size": 64}
    folder = make_model(tmp_path / "experts", "qwen3_moe", **config)
    tensors, floats = load_file(folder / "model.safetensors"), {}
    for layer in range(2):
        for name in ("gate", "up", "down"):
            ones = [
                tensors.pop(f"model.layers.{layer}.mlp.experts.{i}.{name}_proj.weight")
                for i in range(6)
            ]
            rows, columns = ones[0].shape
            parts, values = mlx(6 * rows, columns, 4, 32)
            floats[f"blk.{layer}.ffn_{name}_exps.weight"] = values
            module = f"model.layers.{layer}.mlp.switch_mlp.{name}_proj"
            for end, part in parts.items():
                tensors[f"{module}.{end}"] = torch.from_numpy(part.reshape(6, rows, -1))
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    stated = {"quantization": {"bits": 4, "group_size": 32}}
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    convert(ConvertOptions(folder, tmp_path / "out.gguf"))
    gguf = read_gguf(tmp_path / "out.gguf")
    for name, expected in floats.items():
        written = np.frombuffer(gguf.tensor_data(name), "<f4")
        np.testing.assert_allclose(written, expected.ravel(), rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("mlx")])
def test_against_mlx_itself(form: str, plain: Path, tmp_path: Path) -> None:
    core = pytest.importorskip("mlx.core")
    folder, _ = pack(plain, tmp_path / "packed", form)
    stored = core.load(str(folder / "model.safetensors"))
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = Config(json.loads((folder / "config.json").read_text()), "config.json")
    found = weights_of(read_tensors(folder), config)
    name = "model.layers.0.self_attn.q_proj"
    biases = stored.get(f"{name}.biases")
    theirs = core.dequantize(
        stored[f"{name}.weight"],
        stored[f"{name}.scales"].astype(core.float32)
        if biases is not None
        else stored[f"{name}.scales"],
        None if biases is None else biases.astype(core.float32),
        **stated,
    )
    np.testing.assert_allclose(
        found[f"{name}.weight"].array()[:], np.array(theirs.astype(core.float32))
    )


@pytest.mark.parametrize(
    ("ends", "dtype", "words"),
    [
        (("B", "s"), "int32", "GPTQ and laid out for Marlin"),
        (("B", "s_channel", "s_group"), "int32", "QQQ"),
        (("qweight", "scales", "zeros"), "int8", "laid out for BitBLAS"),
        (("qweight", "scales"), "int32", "AWQ and laid out for Marlin"),
    ],
)
def test_layouts_for_one_kernel_are_refused_by_name(
    ends: tuple[str, ...], dtype: str, words: str, plain: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(plain, tmp_path / "packed"))
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        del tensors[name]
        for end in ends:
            kind = getattr(torch, dtype) if end == ends[0] else torch.float16
            tensors[name.replace("weight", end)] = torch.zeros((8, 8), dtype=kind)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{words}.*take the unquantized model"):
        convert(ConvertOptions(folder, tmp_path / "out.gguf"))


def test_against_compressed_tensors_own_code(plain: Path, tmp_path: Path) -> None:
    """Its packing and ours agree on every code."""
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers"
    )
    import torch

    folder, _ = pack(plain, tmp_path / "packed", "int4")
    name = "model.layers.0.self_attn.q_proj"
    stored = read_tensors(folder)
    codes = helpers.unpack_from_int32(
        torch.from_numpy(stored[f"{name}.weight_packed"].array().copy()),
        4,
        torch.Size((128, 128)),
    )
    scale = stored[f"{name}.weight_scale"].array().astype("f4")
    config = Config(json.loads((folder / "config.json").read_text()), "config.json")
    found = weights_of(stored, config)[f"{name}.weight"].array()[:]
    np.testing.assert_allclose(
        found, codes.numpy() * np.repeat(scale, 32, 1), rtol=2e-7
    )


@pytest.mark.parametrize(
    ("form", "end", "shape", "words"),
    [
        ("int4", "weight_packed", (7, 16), "does not pack to"),
        ("int4", "weight_scale", (3, 5), "no scale of"),
        ("gptq", "g_idx", (3,), "is no index of"),
        ("gptq", "qzeros", (3, 3), "no codes of 2 to 8 bits"),
        ("gptq-3", "qweight", (13, 192), "no codes of 2 to 8 bits"),
        ("awq-gemv", "scales", (192, 8), "do not fit groups of 32"),
        ("awq-gemv-fast", "qweight", (47, 128), "do not fit groups of 32"),
        ("mlx-mxfp4", "scales", (3, 3), "has blocks of 32"),
        ("int8-asymmetric", "weight_zero_point", (3, 1), "zero points of int8"),
        ("awq", "qzeros", (3, 3), "is not the form gemm"),
        ("mlx", "biases", (3, 3), "has groups of 32"),
        ("nvfp4", "weight_scale", (3, 3), "has blocks of 16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    form: str, end: str, shape: tuple[int, ...], words: str, plain: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder, _ = pack(plain, tmp_path / "packed", form)
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.1.mlp.up_proj.{end}"
    tensors[name] = torch.zeros(shape).to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{end} .*{words}|{words}"):
        convert(ConvertOptions(folder, tmp_path / "out.gguf"))
    assert not (tmp_path / "out.gguf").exists()
