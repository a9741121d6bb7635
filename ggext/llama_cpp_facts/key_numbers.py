"""An architecture's keys as whole numbers in bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 2**31 - 1


class Numbers:
    """An architecture's keys, held to whole numbers in bounds. All raise ValueError."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.keys = keys

    def number(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = MOST
    ) -> int:
        return self._checked(key, self.keys.get(key, default), least, most)

    def each(self, key: str, layers: int, default: int | None = None) -> list[int]:
        """One number a layer; the file has one for all, or a list."""
        value = self.keys.get(key, default)
        if not isinstance(value, list):
            return [self._checked(key, value, 0, MOST)] * layers
        if len(value) != layers:
            raise ValueError(f"{key} has {len(value)} values for {layers} layers")
        return [self._checked(key, item, 0, MOST) for item in value]

    def first(self, key: str, layers: int, default: int) -> int:
        """The first layer's number, which llama.cpp's loaders make all layers' tensors by."""
        return self.each(key, layers, default)[0]

    def same(
        self, key: str, layers: int, default: int | None = None, *, skipped: int = -1
    ) -> int:
        """A number of at least 1 that all layers have, but for those with the ``skipped`` one."""
        values = {
            value for value in self.each(key, layers, default) if value != skipped
        }
        if len(values) != 1 or 0 in values:
            raise ValueError(
                f"{key} is {self.keys.get(key)!r:.40}, not one number for all layers"
            )
        return values.pop()

    def _checked(self, key: str, value: Any, least: int, most: int) -> int:
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not least <= value <= most
        ):
            raise ValueError(
                f"{key} is {value!r:.40}, not a number of {least} to {most}"
            )
        return value
