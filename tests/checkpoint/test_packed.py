"""Packed weights: the floats that are read against those that each format's own definition gives,
packed here value by value."""

from __future__ import annotations

import json
import shutil
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
    """Codes of the last dimension as one stream of bits in words of 32, the lowest first."""
    stream = codes.astype("u1")[..., None] >> np.arange(bits, dtype="u1") & 1
    flat = stream.reshape(*codes.shape[:-1], -1)
    assert flat.shape[-1] % 32 == 0
    return np.packbits(flat, axis=-1, bitorder="little").view("<u4")


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


def _int8(rows: int, columns: int, *, around_zero: bool = True) -> Packed:
    codes, scales = _RANDOM.integers(-128, 128, (rows, columns)), _scales(rows, 1)
    tensors = {"weight": codes.astype("i1"), "weight_scale": scales}
    if not around_zero:
        zeros = _RANDOM.integers(-128, 128, (rows, 1))
        tensors["weight_zero_point"] = zeros.astype("i1")
        codes = codes - zeros
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


def _room(inputs: int, group: int) -> int:
    """Words of the zero points of an output, as AutoAWQ makes room for them."""
    several = {32: 4, 64: 2}.get(group, 1)
    words = -(-(inputs // group) // 8)
    return -(-words // several) * several


def _awq_by_output(
    rows: int, columns: int, group: int
) -> tuple[Array, Array, Array, Array]:
    """Codes, zero points and scales of gemv and gemv_fast with what room they have, and values."""
    codes = _RANDOM.integers(0, 16, (rows, columns))
    zeros = np.zeros((rows, 8 * _room(columns, group)), "i8")
    scales = np.zeros(zeros.shape, "<f2")
    n_groups = columns // group
    zeros[:, :n_groups] = _RANDOM.integers(0, 16, (rows, n_groups))
    scales[:, :n_groups] = _scales(rows, n_groups)
    return codes, zeros, scales, np.repeat(np.arange(n_groups), group)


def _awq_gemv(rows: int, columns: int, group: int) -> Packed:
    codes, zeros, scales, index = _awq_by_output(rows, columns, group)
    tensors = {
        "qweight": _words(codes, 4).view("<i4"),
        "qzeros": _words(zeros, 4).view("<i4"),
        "scales": scales,
    }
    return tensors, (codes - zeros[:, index]) * scales.astype("f4")[:, index]


def _awq_gemv_fast(rows: int, columns: int, group: int, end: str = "qzeros") -> Packed:
    codes, zeros, scales, index = _awq_by_output(rows, columns, group)
    added = -(scales * zeros.astype("f4")).astype("<f2")
    words = np.zeros((rows // 4, columns), "<u2")
    # Of each 32 columns: even and odd ones of four pairs that are 8 apart, then the next pair.
    order = [
        8 * eight + 2 * pair + odd
        for pair in range(4)
        for odd in (0, 1)
        for eight in range(4)
    ]
    for four in range(rows // 4):
        for block in range(0, columns, 64):
            placed = [
                codes[4 * four + row, block + half + column]
                for row in range(4)
                for half in (0, 32)
                for column in order
            ]
            for i, code in enumerate(placed):
                words[four, block + i // 4] |= code << (i % 4 * 4)
    tensors = {
        "qweight": words.view("<i2"),
        end: added.T.copy(),
        "scales": scales.T.copy(),
    }
    values = codes * scales.astype("f4")[:, index] + added.astype("f4")[:, index]
    return tensors, values


def _mlx(rows: int, columns: int, bits: int, group: int) -> Packed:
    codes = _RANDOM.integers(0, 1 << bits, (rows, columns))
    scales, biases = _scales(rows, columns // group), -_scales(rows, columns // group)
    tensors = {"weight": _words(codes, bits), "scales": scales, "biases": biases}
    repeated = [np.repeat(values.astype("f4"), group, 1) for values in (scales, biases)]
    return tensors, codes.astype("f4") * repeated[0] + repeated[1]


def _mlx_floats(rows: int, columns: int, mode: str) -> Packed:
    block = 16 if mode == "nvfp4" else 32
    bits = 8 if mode == "mxfp8" else 4
    table = float8_values("F8_E4M3") if bits == 8 else np.concatenate([_E2M1, -_E2M1])
    codes = _RANDOM.integers(0, 1 << bits, (rows, columns))
    codes[codes & 127 == 127] -= 1  # no NaN
    stored = _RANDOM.integers(100, 127, (rows, columns // block)).astype("u1")
    scales = 2.0 ** (stored.astype("f8") - 127)
    if mode == "nvfp4":
        scales = float8_values("F8_E4M3")[stored]
    values = (table[codes] * np.repeat(scales, block, 1)).astype("f4")
    return {"weight": _words(codes, bits), "scales": stored}, values


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


def _mx(rows: int, columns: int, bits: int) -> Packed:
    """MXFP6 (E2M3) and MXFP8 (E4M3) of compressed-tensors."""
    codes = _RANDOM.integers(0, 1 << bits, (rows, columns))
    codes[codes & 127 == 127] -= 1
    stored = _RANDOM.integers(118, 128, (rows, columns // 32)).astype("u1")
    if bits == 8:
        tensors = {"weight": codes.astype("u1"), "weight_scale": stored}
        values = float8_values("F8_E4M3")[codes]
    else:
        packed = _words(codes, 6).view("u1")
        tensors = {"weight_packed": packed, "weight_scale": stored}
        exponent, mantissa = codes >> 3 & 3, codes & 7
        normal = (1 + mantissa / 8) * 2.0 ** (exponent - 1)
        magnitude = np.where(exponent, normal, mantissa / 8)
        values = magnitude * np.where(codes & 32, -1, 1)
    scales = np.repeat(2.0 ** (stored.astype("f8") - 127), 32, 1)
    return tensors, (values * scales).astype("f4")


_CT = {"quant_method": "compressed-tensors"}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
_AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
}
FORMS: dict[str, tuple[Callable[[int, int], Packed], dict[str, Any]]] = {
    "int4": (lambda r, c: _symmetric(r, c, 4, 32), _CT),
    "int4-channel": (lambda r, c: _symmetric(r, c, 4, c), _CT),
    "int8-packed": (lambda r, c: _symmetric(r, c, 8, 32), _CT),
    "int4-asymmetric": (lambda r, c: _asymmetric(r, c, 4, 32), _CT),
    "int2": (lambda r, c: _symmetric(r, c, 2, 32), _CT),
    "int3": (lambda r, c: _symmetric(r, c, 3, 32), _CT),
    "int5-asymmetric": (lambda r, c: _asymmetric(r, c, 5, 32), _CT),
    "int8": (_int8, _CT),
    "int8-asymmetric": (lambda r, c: _int8(r, c, around_zero=False), _CT),
    "gptq": (lambda r, c: _gptq(r, c, 4, 32, 1), {"quant_method": "gptq", "bits": 4}),
    "gptq-8": (lambda r, c: _gptq(r, c, 8, 32, 1), {"quant_method": "gptq", "bits": 8}),
    "gptq-2": (lambda r, c: _gptq(r, c, 2, 32, 1), {"quant_method": "gptq", "bits": 2}),
    "gptq-3": (lambda r, c: _gptq(r, c, 3, 32, 1), {"quant_method": "gptq", "bits": 3}),
    # A module of other bits than the rest, as GPTQModel and AutoRound make them.
    "gptq-6-in-4": (lambda r, c: _gptq(r, c, 6, 32, 1), {"bits": 4}),
    "auto-round": (lambda r, c: _gptq(r, c, 4, 32, 1), _AUTO_ROUND),
    "auto-round-3-asymmetric": (
        lambda r, c: _gptq(r, c, 3, 32, 0),
        {**_AUTO_ROUND, "packing_format": "auto_round", "sym": False},
    ),
    "auto-round-awq": (
        lambda r, c: _awq(r, c, 32),
        {**_AUTO_ROUND, "packing_format": "auto_round:auto_awq"},
    ),
    "gptq-v2": (
        lambda r, c: _gptq(r, c, 4, 32, 0),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (lambda r, c: _awq(r, c, 32), {"quant_method": "awq", "version": "gemm"}),
    "awq-gemv": (lambda r, c: _awq_gemv(r, c, 32), _AWQ | {"version": "gemv"}),
    "awq-gemv-channel": (
        lambda r, c: _awq_gemv(r, c, c),
        _AWQ | {"version": "gemv", "group_size": -1},
    ),
    "awq-gemv-fast": (
        lambda r, c: _awq_gemv_fast(r, c, 32),
        _AWQ | {"version": "gemv_fast"},
    ),
    "llm-awq": (lambda r, c: _awq_gemv_fast(r, c, 32, "scaled_zeros"), _AWQ),
    **{
        f"mlx-{bits}": (
            lambda r, c, bits=bits: _mlx(r, c, bits, 32),
            {"bits": bits, "group_size": 32},
        )
        for bits in (1, 2, 3, 5, 6)
    },
    **{
        f"mlx-{mode}": (
            lambda r, c, mode=mode: _mlx_floats(r, c, mode),
            {"mode": mode, "bits": 8 if mode == "mxfp8" else 4},
        )
        for mode in ("mxfp4", "mxfp8", "nvfp4")
    },
    "mlx": (lambda r, c: _mlx(r, c, 4, 32), {"bits": 4, "group_size": 32}),
    "mlx-8": (lambda r, c: _mlx(r, c, 8, 32), {"bits": 8, "group_size": 32}),
    "nvfp4": (lambda r, c: _fp4(r, c, 16, "compressed"), _CT),
    "nvfp4-modelopt": (
        lambda r, c: _fp4(r, c, 16, "modelopt"),
        {"quant_method": "modelopt"},
    ),
    "mxfp6": (lambda r, c: _mx(r, c, 6), _CT),
    "mxfp8": (lambda r, c: _mx(r, c, 8), _CT),
    "mxfp4": (lambda r, c: _fp4(r, c, 32, "mxfp4"), _CT),
}


def _packed(plain: Path, folder: Path, form: str) -> tuple[Path, dict[str, Array]]:
    """The checkpoint with packed projections, and the floats that these are."""
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
            if (end == "weight_scale" and form.startswith("nvfp4")) or (
                end == "weight" and form == "mxfp8"
            ):
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
    # All sizes are multiples of 64, as gemv_fast must have them.
    return make_llama(
        tmp_path_factory.mktemp("packed") / "plain", intermediate_size=192
    )


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


@pytest.mark.parametrize(
    "form", ["int4", "gptq-3", "awq", "awq-gemv-fast", "mlx", "mlx-5", "nvfp4"]
)
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


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("mlx")])
def test_against_mlx_itself(form: str, plain: Path, tmp_path: Path) -> None:
    mlx = pytest.importorskip("mlx.core")
    folder, _ = _packed(plain, tmp_path / "packed", form)
    stored = mlx.load(str(folder / "model.safetensors"))
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = Config(json.loads((folder / "config.json").read_text()), "config.json")
    found = weights_of(read_tensors(folder), config)
    name = "model.layers.0.self_attn.q_proj"
    biases = stored.get(f"{name}.biases")
    theirs = mlx.dequantize(
        stored[f"{name}.weight"],
        stored[f"{name}.scales"].astype(mlx.float32)
        if biases is not None
        else stored[f"{name}.scales"],
        None if biases is None else biases.astype(mlx.float32),
        **stated,
    )
    np.testing.assert_allclose(
        found[f"{name}.weight"].array()[:], np.array(theirs.astype(mlx.float32))
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

    folder, _ = _packed(plain, tmp_path / "packed", form)
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.1.mlp.up_proj.{end}"
    tensors[name] = torch.zeros(shape).to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{end} .*{words}|{words}"):
        convert(ConvertOptions(folder, tmp_path / "out.gguf"))
    assert not (tmp_path / "out.gguf").exists()
