"""A RoPE gain m folded into the weights: rotation leaves the keys' length alone, and the queries
are m² longer.

Attention sees q·k only, so m on both sides is m² on one. What a context shift does to the cached
keys is then a pure rotation, where a gain in the kernel would be applied again at every shift.
Float tensors are scaled in float64 and rounded once; of quantized ones the float16 scales of their
blocks are scaled, and what that costs is measured (``Rounding``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import bfloat16_values
from ggext.convert.model_source import SourceTensor
from ggext.errors import GgufError, RopeError
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import BF16, F16, F32, type_name
from ggext.rope.decode import layer_kinds
from ggext.rope.scaling import RopeGeometry

if TYPE_CHECKING:
    import numpy as np

    _Bytes = np.ndarray[Any, np.dtype[np.uint8]]
    _Floats = np.ndarray[Any, np.dtype[np.float64]]

#: Quantized type → where in a block its float16 scales stand (bytes). A block's values are linear
#: in them. From ggml-common.h, structs block_q4_0 to block_iq4_xs.
SCALES_OF_TYPE = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
_QUERY_NORM = "attn_q_norm.weight"
#: Of an indexer's queries, which the same table rotates: its scores choose by themselves.
_INDEXER_NORM = "indexer.q_norm.weight"
_PROJECTIONS = ("attn_q.weight", "attn_q.bias", "attn_qkv.weight", "attn_qkv.bias")


@dataclass(frozen=True)
class RoundingLoss:
    """What storing the scaled numbers (values, or block scales of quantized tensors) lost, relative
    to them."""

    # Of a single number.
    worst: float = 0.0
    # Of all of them, √(Σ error² / Σ number²).
    rms: float = 0.0
    # How many they are.
    numbers: int = 0


@dataclass
class Rounding:
    """Sums up a ``RoundingLoss`` while tensors are written, by several threads."""

    worst: float = 0.0
    numbers: int = 0
    _errors: float = 0.0
    _squares: float = 0.0
    _lock: Lock = field(default_factory=Lock)

    @property
    def rms(self) -> float:
        return math.sqrt(self._errors / self._squares) if self._squares else 0.0

    def loss(self) -> RoundingLoss:
        return RoundingLoss(self.worst, self.rms, self.numbers)

    def add(self, exact: _Floats, stored: _Floats) -> None:
        import numpy as np

        finite = np.isfinite(exact)  # a stranger's weights need not be
        numbers = exact.size
        exact = exact[finite]
        stored = stored[finite]
        error = np.abs(stored - exact)
        relative = error[exact != 0] / np.abs(exact[exact != 0])
        with self._lock:  # several threads write
            self.worst = max(self.worst, float(relative.max(initial=0.0)))
            self.numbers += numbers
            self._errors += float(np.sum(error * error))
            self._squares += float(np.sum(exact * exact))


def query_tensors(
    tensors: Sequence[SourceTensor], arch: str, keys: Mapping[str, Any]
) -> list[SourceTensor]:
    """Those that make the queries of every layer that the scaling concerns: their norms where the
    model has such, else their projections.

    ``keys``: the architecture's, without its prefix. Raises ``RopeError``, a reason without a
    remedy, where a layer's queries are made by tensors that are not known here.
    """
    normed = any(t.name.endswith(_QUERY_NORM) for t in tensors)
    n_heads = keys.get("attention.head_count")
    if not normed and not isinstance(n_heads, int):
        raise RopeError(
            f"attention.head_count is {n_heads!r}, and a gain can be folded only into layers that "
            "are alike"
        )
    if keys.get("attention.clamp_kqv"):
        raise RopeError(
            "the model clips its queries, and scaled ones would meet the limit sooner"
        )
    kinds = layer_kinds(keys, arch)
    concerned = {str(i) for i, kind in enumerate(kinds) if kind == "scaled"}
    names = (_QUERY_NORM, _INDEXER_NORM) if normed else _PROJECTIONS
    pattern = re.compile(rf"blk\.(\d+)\.(?:{'|'.join(map(re.escape, names))})")
    layers = {t.name: match[1] for t in tensors if (match := pattern.fullmatch(t.name))}
    queries = [t for t in tensors if layers.get(t.name) in concerned]
    reached = {layers[t.name] for t in queries if t.name.endswith(".weight")}
    missing = min(map(int, concerned - reached), default=None)
    if missing is not None:
        raise RopeError(
            f"layer {missing} has none of {', '.join(n for n in names if n.endswith('weight'))} to "
            "fold the gain into"
        )
    rows = next((t for t in queries if is_query_norm(t) and len(t.shape) > 1), None)
    if rows is not None:
        raise RopeError(
            f"tensor {rows.name} has a row for each head, whose rotated part cannot be scaled alone"
        )
    return queries


def is_query_norm(tensor: SourceTensor) -> bool:
    return tensor.name.endswith((_QUERY_NORM, _INDEXER_NORM))


def folded_weights(tensors: Sequence[SourceTensor]) -> dict[str, bytes]:
    """The scaled query norms of a GGUF file by name, as little-endian float32: all that a fold
    changes there. Empty where other weights are scaled too."""
    scaled = [t for t in tensors if t.row_scale is not None]
    if not all(is_query_norm(t) and t.is_gguf and t.type == F32 for t in scaled):
        return {}
    weights = {}
    for tensor in scaled:
        assert isinstance(tensor.origin, GgufFile)
        assert tensor.row_scale is not None
        values = tensor.origin.float_tensor(tensor.name)
        weights[tensor.name] = scale_values(values, tensor.row_scale).tobytes()
    return weights


def fold_query(
    tensors: Sequence[SourceTensor],
    arch: str,
    geometry: RopeGeometry,
    keys: Mapping[str, Any],
    ratio: float,
) -> list[SourceTensor]:
    """``tensors`` with ``ratio`` on the rotated query rows of every layer that the scaling
    concerns. Raises as ``query_tensors``, with a remedy."""
    try:
        queries = {tensor.name for tensor in query_tensors(tensors, arch, keys)}
    except RopeError as error:
        raise RopeError(f"{error}; choose encoding='keys'") from None
    n_heads = keys["attention.head_count"]
    return [
        _scaled(t, geometry, n_heads, ratio) if t.name in queries else t
        for t in tensors
    ]


def _scaled(
    tensor: SourceTensor, geometry: RopeGeometry, n_heads: int, ratio: float
) -> SourceTensor:
    """Rows of the query heads only (a fused tensor has the keys and values after them), rotated
    dimensions only (the first of a head, in either layout)."""
    import numpy as np

    rows = tensor.shape[-1]
    size = rows if tensor.name.endswith(_INDEXER_NORM) else geometry.head_dim
    of_norm = is_query_norm(tensor)  # of one head, or of all
    heads = max(1, rows // size) if of_norm else n_heads
    if rows < heads * size:
        raise RopeError(
            f"tensor {tensor.name} has {rows} rows; {heads} heads of {size} need more"
        )
    scale = np.ones(rows) if tensor.row_scale is None else tensor.row_scale.copy()
    for head in range(heads):
        scale[head * size :][: geometry.n_rot] *= ratio
    return replace(tensor, row_scale=scale)


def scale_values(
    values: np.ndarray[Any, Any], scale: _Floats
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of float values times their scale, rounded once to float32. Raises GgufError where a
    product is too large."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # a stranger's weights
        wide = values.astype(np.float64) * scale.reshape(-1, *[1] * (values.ndim - 1))
        result: np.ndarray[Any, np.dtype[np.float32]] = wide.astype("<f4")
    _check_fit(values, scale, result, F32)
    return result


def _check_fit(values: Any, scale: _Floats, stored: Any, kind: int) -> None:
    import numpy as np

    if not np.isfinite(stored).all() and np.isfinite(values).all():
        remedy = "the weights are damaged" if kind == F32 else "start from f32"
        raise GgufError(
            f"a query weight times {scale.max():g} does not fit into {type_name(kind)}; {remedy}"
        )


def scale_bytes(rows: _Bytes, kind: int, scale: _Floats, rounding: Rounding) -> _Bytes:
    """Rows of a GGUF tensor (n_rows, bytes) with each row's values times its scale, in the same
    type.

    Raises ``GgufError`` for a type whose blocks have no float16 scale, or a scale that float16
    cannot hold.
    """
    if kind in (F32, F16, BF16):
        return _scale_floats(rows, kind, scale, rounding)
    offsets = SCALES_OF_TYPE.get(type_name(kind))
    if offsets is None:
        raise GgufError(
            f"a tensor of the queries is {type_name(kind)}, whose scales are not float16 numbers: "
            "nothing can be "
            "folded into it; choose encoding='keys', or start from a float file"
        )
    return _scale_blocks(rows, kind, offsets, scale, rounding)


def _scale_blocks(
    rows: _Bytes,
    kind: int,
    offsets: tuple[int, ...],
    scale: _Floats,
    rounding: Rounding,
) -> _Bytes:
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    blocks = rows.reshape(len(rows), -1, block_bytes).copy()
    touched = scale != 1.0
    for offset in offsets:
        old = np.ascontiguousarray(blocks[touched, :, offset : offset + 2]).view("<f2")[
            ..., 0
        ]
        with np.errstate(over="ignore", invalid="ignore"):
            exact = old.astype(np.float64) * scale[touched, None]
            new = exact.astype("<f2")
        if np.isinf(new).any() and not np.isinf(old).any():
            raise GgufError(
                f"a block scale of {np.abs(old).max():g} times {scale.max():g} does not fit into "
                "float16; "
                "choose encoding='keys', or start from a float file"
            )
        rounding.add(exact, new.astype(np.float64))
        blocks[touched, :, offset : offset + 2] = new[..., None].view("u1")
    return blocks.reshape(rows.shape)


def _scale_floats(
    rows: _Bytes, kind: int, scale: _Floats, rounding: Rounding
) -> _Bytes:
    import numpy as np

    if kind == BF16:
        values = bfloat16_values(np.ascontiguousarray(rows).view("<u2"))
    else:
        dtype = "<f4" if kind == F32 else "<f2"
        values = np.ascontiguousarray(rows).view(dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # a stranger's weights
        exact = values.astype(np.float64) * scale[:, None]
        float_dtype = np.dtype("<f4") if kind == BF16 else values.dtype
        stored = kept = exact.astype(float_dtype)
    if kind == BF16:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import quantize

        stored = quantize(stored, GGMLQuantizationType.BF16).view("<u2")
        kept = bfloat16_values(stored)
    _check_fit(values, scale, kept, kind)
    rounding.add(exact, kept.astype(np.float64))
    return np.ascontiguousarray(stored).view("u1").reshape(rows.shape)
