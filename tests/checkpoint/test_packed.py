"""Packed weights: the floats that are read against those that each format's own definition gives,
packed here value by value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_llama, make_model

from ggext.checkpoint.config import Config
from ggext.checkpoint.float8 import weights_of
from ggext.checkpoint.float8_codes import float8_values
from ggext.checkpoint.weights import read_tensors
from ggext.convert import ConvertOptions, convert
from ggext.errors import CheckpointError
from ggext.gguf.open import read_gguf

pytest.importorskip("transformers")

_RANDOM = np.random.default_rng(0)
Array = np.ndarray[Any, Any]
Packed = tuple[dict[str, Array], Array]


def _words(codes: Array, bits: int) -> Array:
    """Codes of the last dimension in words of 32 bits, the first in the lowest bits."""
    per_word = 32 // bits
    words = np.zeros((*codes.shape[:-1], codes.shape[-1] // per_word), "<u4")
    for i in range(codes.shape[-1]):
        words[..., i // per_word] |= codes[..., i].astype("<u4") << np.uint32(
            i % per_word * bits
        )
    return words


def _scales(*shape: int) -> Array:
    return (_RANDOM.random(shape) / 50 + 0.01).astype("<f2")


def _symmetric(rows: int, columns: int, bits: int, group: int) -> Packed:
    codes = _RANDOM.integers(0, 1 << bits, (rows, columns))
    scales = _scales(rows, columns // group)
    tensors = {
        "weight_packed": _words(codes, bits).view("<i4"),
        "weight_scale": scales,
        "weight_shape": np.array([rows, columns], "<i8"),
    }
    return tensors, (codes - (1 << bits - 1)) * np.repeat(scales.astype("f4"), group, 1)


def _asymmetric(rows: int, columns: int, bits: int, group: int) -> Packed:
    codes = _RANDOM.integers(0, 1 << bits, (rows, columns))
    zeros = _RANDOM.integers(0, 1 << bits, (rows, columns // group))
    scales, index = (
        _scales(rows, columns // group),
        _RANDOM.permutation(columns) // group,
    )
    tensors = {
        "weight_packed": _words(codes, bits).view("<i4"),
        "weight_scale": scales,
        "weight_shape": np.array([rows, columns], "<i8"),
        "weight_zero_point": _words(zeros.T, bits).T.copy().view("<i4"),
        "weight_g_idx": index.astype("<i4"),
    }
    return tensors, (codes - zeros[:, index]) * scales.astype("f4")[:, index]


def _int8(rows: int, columns: int) -> Packed:
    codes, scales = _RANDOM.integers(-128, 128, (rows, columns)), _scales(rows, 1)
    tensors = {"weight": codes.astype("i1"), "weight_scale": scales}
    return tensors, codes * scales.astype("f4")


def _gptq(rows: int, columns: int, bits: int, group: int, less: int) -> Packed:
    codes = _RANDOM.integers(0, 1 << bits, (columns, rows))
    zeros = _RANDOM.integers(0, 1 << bits, (columns // group, rows))
    scales, index = (
        _scales(columns // group, rows),
        _RANDOM.permutation(columns) // group,
    )
    tensors = {
        "qweight": _words(codes.T, bits).T.copy().view("<i4"),
        "qzeros": _words(zeros, bits).view("<i4"),
        "scales": scales,
        "g_idx": index.astype("<i4"),
    }
    return tensors, ((codes - (zeros + less)[index]) * scales.astype("f4")[index]).T


def _awq(rows: int, columns: int, group: int) -> Packed:
    codes = _RANDOM.integers(0, 16, (columns, rows))
    zeros = _RANDOM.integers(0, 16, (columns // group, rows))
    scales = _scales(columns // group, rows)
    order = [
        8 * word + i for word in range(rows // 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)
    ]
    tensors = {
        "qweight": _words(codes[:, order], 4).view("<i4"),
        "qzeros": _words(zeros[:, order], 4).view("<i4"),
        "scales": scales,
    }
    by_input = np.repeat(zeros, group, 0), np.repeat(scales.astype("f4"), group, 0)
    return tensors, ((codes - by_input[0]) * by_input[1]).T


def _mlx(rows: int, columns: int, bits: int, group: int) -> Packed:
    codes = _RANDOM.integers(0, 1 << bits, (rows, columns))
    scales, biases = _scales(rows, columns // group), -_scales(rows, columns // group)
    tensors = {"weight": _words(codes, bits), "scales": scales, "biases": biases}
    repeated = [np.repeat(values.astype("f4"), group, 1) for values in (scales, biases)]
    return tensors, codes.astype("f4") * repeated[0] + repeated[1]


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "f4")


def _fp4(rows: int, columns: int, block: int, form: str) -> Packed:
    codes = _RANDOM.integers(0, 16, (rows, columns))
    values = _E2M1[codes & 7] * np.where(codes & 8, -1, 1)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).astype("u1")
    if form == "mxfp4":
        exponents = _RANDOM.integers(118, 128, (rows, columns // block)).astype("u1")
        scales = 2.0 ** (exponents.astype("f8") - 127)
        tensors = {"weight_packed": packed, "weight_scale": exponents}
        return tensors, (values * np.repeat(scales, block, 1)).astype("f4")
    stored = _RANDOM.integers(8, 120, (rows, columns // block)).astype("u1")
    whole = np.array([0.0125 if form == "modelopt" else 80.0], "<f4")
    factor = whole[0] if form == "modelopt" else 1 / whole[0]
    scales = float8_values("F8_E4M3")[stored] * factor
    names = (
        ("weight", "weight_scale_2")
        if form == "modelopt"
        else ("weight_packed", "weight_global_scale")
    )
    tensors = {names[0]: packed, "weight_scale": stored, names[1]: whole}
    return tensors, values * np.repeat(scales, block, 1)


_CT = {"quant_method": "compressed-tensors"}
FORMS: dict[str, tuple[Callable[[int, int], Packed], dict[str, Any]]] = {
    "int4": (lambda r, c: _symmetric(r, c, 4, 32), _CT),
    "int4-channel": (lambda r, c: _symmetric(r, c, 4, c), _CT),
    "int8-packed": (lambda r, c: _symmetric(r, c, 8, 32), _CT),
    "int4-asymmetric": (lambda r, c: _asymmetric(r, c, 4, 32), _CT),
    "int8": (_int8, _CT),
    "gptq": (lambda r, c: _gptq(r, c, 4, 32, 1), {"quant_method": "gptq", "bits": 4}),
    "gptq-8": (lambda r, c: _gptq(r, c, 8, 32, 1), {"quant_method": "gptq", "bits": 8}),
    "gptq-2": (lambda r, c: _gptq(r, c, 2, 32, 1), {"quant_method": "gptq", "bits": 2}),
    "gptq-v2": (
        lambda r, c: _gptq(r, c, 4, 32, 0),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (lambda r, c: _awq(r, c, 32), {"quant_method": "awq", "version": "gemm"}),
    "mlx": (lambda r, c: _mlx(r, c, 4, 32), {"bits": 4, "group_size": 32}),
    "mlx-8": (lambda r, c: _mlx(r, c, 8, 32), {"bits": 8, "group_size": 32}),
    "nvfp4": (lambda r, c: _fp4(r, c, 16, "compressed"), _CT),
    "nvfp4-modelopt": (
        lambda r, c: _fp4(r, c, 16, "modelopt"),
        {"quant_method": "modelopt"},
    ),
    "mxfp4": (lambda r, c: _fp4(r, c, 32, "mxfp4"), _CT),
}


def _packed(plain: Path, folder: Path, form: str) -> tuple[Path, dict[str, Array]]:
    """The checkpoint with packed projections, and the floats that these are."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    make, stated = FORMS[form]
    shutil.copytree(plain, folder)
    tensors, floats = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        parts, floats[name] = make(*weight.shape)
        for end, values in parts.items():
            tensor = torch.from_numpy(np.ascontiguousarray(values))
            if end == "weight_scale" and "nvfp4" in form:
                tensor = tensor.view(torch.float8_e4m3fn)
            tensors[name.replace("weight", end)] = tensor
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    said = json.loads(path.read_text()) | {
        "quantization_config": stated,
        "dtype": "float32",
    }
    path.write_text(json.dumps(said))
    return folder, floats


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("packed") / "plain")


@pytest.mark.parametrize("form", FORMS)
def test_the_floats_are_the_formats(form: str, plain: Path, tmp_path: Path) -> None:
    folder, floats = _packed(plain, tmp_path / "packed", form)
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


@pytest.mark.parametrize("form", ["int4", "gptq", "awq", "mlx", "nvfp4"])
def test_the_file_is_that_of_the_floats(form: str, plain: Path, tmp_path: Path) -> None:
    """Through the families' rules, with rows in another order."""
    import torch
    from safetensors.torch import load_file, save_file

    folder, floats = _packed(plain, tmp_path / "packed", form)
    convert(ConvertOptions(folder, tmp_path / "packed.gguf"))
    weights = load_file(plain / "model.safetensors")
    weights |= {
        name: torch.from_numpy(values.astype("f4")) for name, values in floats.items()
    }
    other = make_llama(tmp_path / "other")
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
        parts, floats[name] = _symmetric(*weight.shape, 4, 32)
        tensors |= {
            name.replace("weight", k): torch.from_numpy(v) for k, v in parts.items()
        }
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["text_config"]["quantization_config"] = {**_CT, "format": "pack-quantized"}
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
            parts, values = _mlx(6 * rows, columns, 4, 32)
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


def test_against_compressed_tensors_own_code(plain: Path, tmp_path: Path) -> None:
    """Its packing and ours agree on every code."""
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers"
    )
    import torch

    folder, _ = _packed(plain, tmp_path / "packed", "int4")
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
        ("gptq", "qzeros", (3, 3), "GPTQ of 4 bits"),
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

    folder, _ = _packed(plain, tmp_path / "packed", form)
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.1.mlp.up_proj.{end}"
    tensors[name] = torch.zeros(shape).to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{end} .*{words}|{words}"):
        convert(ConvertOptions(folder, tmp_path / "out.gguf"))
    assert not (tmp_path / "out.gguf").exists()
