"""The values of 8-bit floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def float8_values(dtype: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The 256 values of a float8 type: E5M2 is the upper half of a float16; E4M3 has bias 7, no
    infinity, and NaN where all bits but the sign are set (OCP 8-bit floating point
    specification)."""
    import numpy as np

    codes = np.arange(256)
    if dtype == "F8_E5M2":
        halves: np.ndarray[Any, np.dtype[np.float32]] = (
            (codes << 8).astype("<u2").view("<f2").astype("<f4")
        )
        return halves
    exponent = (codes >> 3) & 15
    mantissa = codes & 7
    magnitude = np.where(
        exponent, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6
    )
    values = np.where(codes & 127 == 127, np.nan, magnitude) * np.where(
        codes & 128, -1, 1
    )
    return values.astype("<f4")
