"""Checkpoints whose weights are float8 with scales next to them: read as the bfloat16 or float32
that they stand for.

Two layouts: ``quant_method`` fp8 (DeepSeek-V3, Qwen3-FP8, Devstral: ``NAME_scale_inv``, one for
each block of ``weight_block_size`` or one for the tensor; DeepSeek 4: ``scale`` next to ``weight``,
whose bytes are exponents) and compressed-tensors with the format
float-quantized (``NAME_scale``, one for the tensor, one a row, or one a block). A value is
float32(weight) · float32(scale), rounded to the type that the configuration states for the weights
(``dtype``, else float32): what transformers loads with ``dequantize=True, dtype="auto"``. Other
quantizations are refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from ggext.checkpoint.config import Config
from ggext.checkpoint.files import get, quote
from ggext.checkpoint.float8_codes import float8_values
from ggext.checkpoint.lazy_rows import BYTES, LazyRows
from ggext.checkpoint.packed import unpacked
from ggext.checkpoint.quantized import is_plain, packed_by
from ggext.checkpoint.safetensors import CheckpointTensor, bfloat16_values
from ggext.errors import CheckpointError
from ggext.rope.families import text_part

if TYPE_CHECKING:
    import numpy as np

FLOAT8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("F32", "F16", "BF16", "F8_E8M0")
_DTYPES = {"bfloat16": "BF16", "float16": "F16"}
#: Quantizations that a family reads itself.
_BY_FAMILY = {"mxfp4"}
#: Scales of activations and caches: llama.cpp does not quantize these, and the weights do not need
#: them.
_UNUSED = (
    "activation_scale",
    "input_scale",
    "input_global_scale",
    "k_scale",
    "v_scale",
    "q_scale",
)


def believed_over(tensors: Collection[CheckpointTensor], config: Config) -> list[str]:
    """A note where ``config`` says that the tensors are quantized, and they are plain floats."""
    stated = _stated(config)
    if stated is None or not is_plain(tensors):
        return []
    method = quote(str(stated.get("quant_method", "?")), 40)
    note = (
        f"quantization_config says {method}, and every tensor is a plain float: the tensors are "
        "believed"
    )
    return [note]


def weights_of(
    tensors: dict[str, CheckpointTensor], config: Config
) -> dict[str, CheckpointTensor]:
    """``tensors`` with each float8 weight as the values that it stands for, and without its scales.
    They are believed over ``config`` (``believed_over`` says where).

    Raises ``CheckpointError`` for a quantization that is not known, and for scales that do not fit.
    """
    stated = _stated(config)
    if is_plain(tensors.values()):
        return tensors
    dtype = _with_text(config).string("dtype", "torch_dtype", default="float32")
    packed = unpacked(tensors, stated or {}, _DTYPES.get(dtype, "F32"))
    if len(packed) < len(tensors) and not any(
        t.dtype in FLOAT8 for t in packed.values()
    ):
        tensors = packed
        if is_plain(tensors.values()):
            return tensors
    quantization = _quantization(tensors, stated, config.source)
    if quantization is None:
        return tensors
    suffix, block = quantization
    dtype = "BF16" if dtype == "bfloat16" else "F32"
    weights: dict[str, CheckpointTensor] = {}
    for name, tensor in tensors.items():
        weight = _scaled_by(name, suffix, tensors)
        if weight is not None or name.endswith(_UNUSED):
            continue
        scale = tensors.get(name + suffix) or tensors.get(_plain_scale(name))
        weights[name] = (
            _scaled(tensor, scale, dtype, block) if tensor.dtype in FLOAT8 else tensor
        )
    return weights


def _plain_scale(name: str) -> str:
    """The scale of a weight where it is called no more than that."""
    return f"{name.removesuffix('weight')}scale"


def _scaled_by(
    name: str, suffix: str, tensors: Mapping[str, CheckpointTensor]
) -> CheckpointTensor | None:
    """The weight whose scale a tensor is, if it is one. What is called ``scale`` alone is one of a
    float8 weight, and may be another's (MXFP4) that the family reads."""
    weight = tensors.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
    if weight is None and name.endswith(".scale"):
        weight = tensors.get(f"{name.removesuffix('scale')}weight")
        return weight if weight is not None and weight.dtype in FLOAT8 else None
    return weight


def _stated(config: Config) -> Mapping[str, Any] | None:
    """What config.json says of quantization, ``None`` where it says nothing."""
    values = _with_text(config).values
    keys = ("quantization_config", "compression_config", "quantization")
    stated = next((values[key] for key in keys if values.get(key)), None)
    if stated is None or isinstance(stated, Mapping):
        return stated
    raise CheckpointError(
        f"{config.source}: quantization_config is {quote(repr(stated))}, expected an object; "
        "correct the file"
    )


def _quantization(
    tensors: dict[str, CheckpointTensor], stated: Mapping[str, Any] | None, source: str
) -> tuple[str, tuple[int, int] | None] | None:
    """What follows a weight's name in its scale's, and the block (rows, columns) that shares a
    scale, ``None``: not blocks. ``None``: there is nothing to do here."""
    packed = packed_by(tensors)
    if packed is not None:
        raise CheckpointError(
            f"{source}: the weights are quantized by {packed[0]}, which ggext does not read; "
            f"{packed[1]}"
        )
    where = f"{source}: quantization_config"
    if stated is None:
        scaled = next((t for t in tensors.values() if t.dtype in FLOAT8), None)
        if scaled is not None:
            raise CheckpointError(
                f"{scaled.path}: tensor {scaled.name} is {scaled.dtype}, and {where} is missing, "
                "which says how it is scaled; take it from the original model"
            )
        return None
    method = get(stated, "quant_method", str, where, "")
    if method in _BY_FAMILY:
        return None
    if method == "fp8":
        return "_scale_inv", _block(
            stated.get("weight_block_size"), f"{where}: weight_block_size"
        )
    if method == "compressed-tensors":
        return "_scale", _compressed(stated, where)
    raise CheckpointError(
        f"{where} has quant_method {quote(method)}, which ggext does not read (fp8, "
        "compressed-tensors, gptq, awq, NVFP4, MLX's and the MXFP4 of gpt-oss it does); take the "
        "unquantized model, and quantize with type=TYPE"
    )


def _with_text(config: Config) -> Config:
    """With what ``text_config`` says where the configuration itself is silent."""
    stated = {key: value for key, value in config.values.items() if value is not None}
    return replace(config, values={**(text_part(config.values) or {}), **stated})


def _block(value: object, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(type(n) is int and 0 < n < 1 << 31 for n in value)
    ):
        return value[0], value[1]
    raise CheckpointError(
        f"{where} is {quote(repr(value))}, expected two whole numbers; correct the file"
    )


def _compressed(stated: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """The block of compressed-tensors. All groups must be 8-bit floats around zero."""
    form = get(stated, "format", str, where, "")
    groups = get(stated, "config_groups", dict, where, {})
    schemes = [
        group.get("weights") if isinstance(group, Mapping) else None
        for group in groups.values()
    ]
    known = [
        scheme
        for scheme in schemes
        if isinstance(scheme, Mapping) and _is_float8(scheme)
    ]
    if form != "float-quantized" or not known or len(known) < len(schemes):
        raise CheckpointError(
            f"{where} is compressed-tensors of the format {quote(form)} with "
            f"{quote(repr(schemes), 120)}; ggext reads "
            "float-quantized weights of 8 bits a tensor, channel or block: take the unquantized "
            "model"
        )
    blocks = {
        repr(scheme.get("block_structure")): scheme.get("block_structure")
        for scheme in known
    }
    if len(blocks) > 1:
        raise CheckpointError(
            f"{where} has groups with blocks of {', '.join(blocks)}; ggext reads one size"
        )
    return _block(next(iter(blocks.values())), f"{where}: block_structure")


def _is_float8(scheme: Mapping[str, Any]) -> bool:
    return (
        scheme.get("type"),
        scheme.get("num_bits"),
        scheme.get("symmetric", True),
    ) == (
        "float",
        8,
        True,
    ) and scheme.get("strategy") in ("tensor", "channel", "block")


def _scaled(
    tensor: CheckpointTensor,
    scale: CheckpointTensor | None,
    dtype: str,
    block: tuple[int, int] | None,
) -> CheckpointTensor:
    if scale is None:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} is {tensor.dtype} without a scale; download it "
            "again"
        )
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} is {tensor.dtype} {list(tensor.shape)}, not a "
            "matrix"
        )
    if scale.dtype not in _SCALES:
        raise CheckpointError(
            f"{scale.path}: the scale {scale.name} is {scale.dtype}, expected "
            f"{', '.join(_SCALES)}"
        )
    rows, columns = tensor.shape
    extent = _extent(tensor.shape, scale.shape, block)
    if extent is None:
        fits = f"[1], [{rows}, 1]" + (
            f", [{-(-rows // block[0])}, {-(-columns // block[1])}]" if block else ""
        )
        raise CheckpointError(
            f"{scale.path}: the scale {scale.name} has the shape {list(scale.shape)}; for "
            f"{list(tensor.shape)} it must "
            f"be one of {fits}"
        )
    return ScaledTensor(
        tensor.name,
        dtype,
        tensor.shape,
        tensor.path,
        tensor.start,
        rows * columns * BYTES[dtype],
        tensor,
        scale,
        extent,
    )


def _extent(
    shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int] | None:
    """How many (rows, columns) share a scale, ``None`` where the shapes do not fit. The last blocks
    may be cut."""
    rows, columns = shape
    if scale in ((), (1,), (1, 1)):
        return rows, columns
    if scale in ((rows,), (rows, 1)):
        return 1, columns
    if block is not None and scale == (-(-rows // block[0]), -(-columns // block[1])):
        return block
    return None


def _scale_values(scale: CheckpointTensor) -> np.ndarray[Any, Any]:
    """In float32."""
    import numpy as np

    stored = scale.array()
    if scale.dtype == "BF16":
        return bfloat16_values(stored)
    values = stored.astype("<f4")
    if scale.dtype == "F8_E8M0":  # exponents of two
        values = np.ldexp(np.float32(1), stored.astype("<i4") - 127)
    return values


@dataclass(frozen=True)
class ScaledTensor(CheckpointTensor):
    """``dtype``, ``shape``, ``nbytes``: of the values. ``extent``: the rows and columns that share
    a scale."""

    weight: CheckpointTensor = field(repr=False)
    scale: CheckpointTensor = field(repr=False)
    extent: tuple[int, int]

    def array(self) -> np.ndarray[Any, Any]:
        """Rows by index as of a NumPy array; each access computes the rows that it asks for, and no
        more."""
        import numpy as np

        rows, columns = self.shape
        rows_each, columns_each = self.extent
        bits = self.weight.array()
        table = float8_values(self.weight.dtype)
        scales = _scale_values(self.scale)
        scales = scales.reshape(-(-rows // rows_each), -1)

        def make(index: Any) -> np.ndarray[Any, Any]:
            of_rows = scales[np.arange(rows)[index] // rows_each]
            of_each = np.repeat(of_rows, columns_each, axis=-1)[..., :columns]
            values: np.ndarray[Any, Any] = table[bits[index]] * of_each
            return values

        return cast("np.ndarray[Any, Any]", LazyRows(self.shape, self.dtype, make))
