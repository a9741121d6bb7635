"""Checkpoints whose projections are packed, made here value by value as each format's definition
says, and the floats that these stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ggext.checkpoint.float8_codes import float8_values

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


def symmetric(rows: int, columns: int, bits: int, group: int) -> Packed:
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


def mlx(rows: int, columns: int, bits: int, group: int) -> Packed:
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


COMPRESSED_TENSORS = {"quant_method": "compressed-tensors"}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
_AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
}
FORMS: dict[str, tuple[Callable[[int, int], Packed], dict[str, Any]]] = {
    "int4": (lambda r, c: symmetric(r, c, 4, 32), COMPRESSED_TENSORS),
    "int4-channel": (lambda r, c: symmetric(r, c, 4, c), COMPRESSED_TENSORS),
    "int8-packed": (lambda r, c: symmetric(r, c, 8, 32), COMPRESSED_TENSORS),
    "int4-asymmetric": (lambda r, c: _asymmetric(r, c, 4, 32), COMPRESSED_TENSORS),
    "int2": (lambda r, c: symmetric(r, c, 2, 32), COMPRESSED_TENSORS),
    "int3": (lambda r, c: symmetric(r, c, 3, 32), COMPRESSED_TENSORS),
    "int5-asymmetric": (lambda r, c: _asymmetric(r, c, 5, 32), COMPRESSED_TENSORS),
    "int8": (_int8, COMPRESSED_TENSORS),
    "int8-asymmetric": (
        lambda r, c: _int8(r, c, around_zero=False),
        COMPRESSED_TENSORS,
    ),
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
            lambda r, c, bits=bits: mlx(r, c, bits, 32),
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
    "mlx": (lambda r, c: mlx(r, c, 4, 32), {"bits": 4, "group_size": 32}),
    "mlx-8": (lambda r, c: mlx(r, c, 8, 32), {"bits": 8, "group_size": 32}),
    "nvfp4": (lambda r, c: _fp4(r, c, 16, "compressed"), COMPRESSED_TENSORS),
    "nvfp4-modelopt": (
        lambda r, c: _fp4(r, c, 16, "modelopt"),
        {"quant_method": "modelopt"},
    ),
    "mxfp6": (lambda r, c: _mx(r, c, 6), COMPRESSED_TENSORS),
    "mxfp8": (lambda r, c: _mx(r, c, 8), COMPRESSED_TENSORS),
    "mxfp4": (lambda r, c: _fp4(r, c, 32, "mxfp4"), COMPRESSED_TENSORS),
}


def pack(plain: Path, folder: Path, form: str) -> tuple[Path, dict[str, Array]]:
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
