"""Scaled values and blocks of every type, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from ggext.checkpoint.safetensors import bfloat16_values
from ggext.convert.fold import SCALES_OF_TYPE, Rounding, scale_bytes, scale_values
from ggext.errors import GgufError


@pytest.mark.parametrize("name", SCALES_OF_TYPE)
def test_scaled_blocks_are_the_scaled_values(name: str) -> None:
    """What the gguf library makes of the scaled blocks: each float16 scale is within half a unit of
    its last place."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[name]
    block_bytes = GGML_QUANT_SIZES[kind][1]
    rows = np.random.default_rng(0).integers(0, 256, (6, 3 * block_bytes), np.uint8)
    blocks = rows.reshape(6, 3, block_bytes)
    for offset in SCALES_OF_TYPE[name]:
        scales = np.random.default_rng(1).uniform(0.01, 0.5, (6, 3)).astype("<f2")
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    scale = np.array([1.0, 1.3, 1.3, 1.0, 1.3, 0.7])
    rounding = Rounding()
    scaled = scale_bytes(rows, kind.value, scale, rounding)
    before, after = dequantize(rows, kind), dequantize(scaled, kind)
    largest = np.abs(before).max()
    assert np.array_equal(before[[0, 3]], after[[0, 3]])
    assert np.abs(after - before * scale[:, None]).max() <= largest * 1.3 * 2**-10
    assert 0 < rounding.rms <= rounding.worst <= 2**-11


def test_what_cannot_be_scaled_is_refused() -> None:
    from gguf.constants import GGMLQuantizationType

    full = np.frombuffer(np.float16(60000).tobytes() + bytes(32), np.uint8)[None]
    with pytest.raises(GgufError, match=r"block scale of 60000 times 1.3 does not fit"):
        scale_bytes(full, GGMLQuantizationType.Q8_0.value, np.array([1.3]), Rounding())
    with pytest.raises(GgufError, match=r"MXFP4, whose scales are not float16"):
        scale_bytes(
            np.zeros((1, 17), np.uint8),
            GGMLQuantizationType.MXFP4.value,
            np.array([1.3]),
            Rounding(),
        )
    largest = {
        "F16": (1, np.float16([[60000]])),
        "F32": (0, np.float32([[3e38]])),
        "BF16": (30, np.uint16([[0x7F7F]])),
    }
    for name, (kind, values) in largest.items():
        with pytest.raises(GgufError, match=f"does not fit into {name}"):
            scale_bytes(values.view(np.uint8), kind, np.array([1.3]), Rounding())
    with pytest.raises(GgufError, match="does not fit into F32"):
        scale_values(np.float32([[3e38]]), np.array([1.3]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "bits", [0x7F80, 0x7FC0, 0x7FA0]
)  # infinite, a NaN, one that signals
def test_weights_that_are_no_numbers_stay_what_they_are(bits: int) -> None:
    rounding = Rounding()
    rows = np.uint16([[bits, 0x3F80]]).view(np.uint8)
    scaled = scale_bytes(rows, 30, np.array([2.0]), rounding).view(np.uint16)
    assert not np.isfinite(bfloat16_values(scaled)[0, 0])
    assert scaled[0, 1] == 0x4000
    assert rounding.worst == rounding.rms == 0
