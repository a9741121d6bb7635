"""Tensors whose values are made row by row out of what a file holds: nothing is computed twice, or
before it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

#: dtype of safetensors → bytes of a value.
BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_NUMPY = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


class LazyRows:
    """As much of a NumPy array as the converters need.

    ``make``: from an index of rows (all dimensions but the last taken together) to their values in
    float32. ``dtype``: what they are rounded to, bfloat16 as its bits."""

    def __init__(
        self, shape: tuple[int, ...], dtype: str, make: Callable[[Any], Array]
    ) -> None:
        import numpy as np

        self.shape = shape
        self.ndim = len(shape)
        self.nbytes = math.prod(shape) * BYTES[dtype]
        self.dtype = np.dtype(_NUMPY[dtype])
        self._name = dtype
        self._make = make

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int) -> LazyRows | Array:
        """As NumPy's; computes all values unless only the rows are taken together."""
        whole = (math.prod(self.shape[:-1]), self.shape[-1])
        if shape in (whole, (-1, self.shape[-1])):
            return LazyRows(whole, self._name, self._make)
        return self._all().reshape(*shape)

    def swapaxes(self, a: int, b: int) -> Array:
        return self._all().swapaxes(a, b)

    def __getitem__(self, index: Any) -> Array:
        if self.ndim == 2 and not isinstance(index, tuple) and index is not Ellipsis:
            return self._rounded(self._make(index))
        whole: Array = self._all()[index]
        return whole

    def _all(self) -> Array:
        return self._rounded(self._make(slice(None))).reshape(self.shape)

    def _rounded(self, values: Array) -> Array:
        if self._name == "BF16":
            return bfloat16_bits(values)
        return values.astype(self.dtype, copy=False)


def bfloat16_bits(values: Array) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """float32 rounded to bfloat16, to nearest and to even."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    rows = np.atleast_2d(np.ascontiguousarray(values))
    bits: np.ndarray[Any, np.dtype[np.uint16]] = quantize(
        rows, GGMLQuantizationType.BF16
    ).view("<u2")
    return bits.reshape(values.shape)
