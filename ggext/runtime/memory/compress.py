"""compress: what leaves the window stays as a few memory cells a block.

A block's keys are rotated back and averaged in groups, with their values; each average is one cell,
rotated to a compact position between the first tokens and the window. (A mean of rotated keys would
be one of nothing.) When those positions are full the oldest cells leave.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ggext.runtime.memory.base import Window, require_movable
from ggext.runtime.rotation import as_bytes, elements

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions
    from ggext.runtime.state import KvBlock

    Layers = list[NDArray[np.float32]]


class Compress(Window):
    """Sinks, memory cells, and a window. Raises ModelError for a cache whose keys cannot be
    moved."""

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        super().__init__(cache, options, options.retrieved * options.block)
        require_movable(cache, options.when_full)
        self._keys: Layers = []
        self._values: Layers = []

    def slide(self, start: int, end: int) -> bool:
        had = bool(self._keys)
        form: KvBlock | None = None
        for block in self.blocks(start, end):
            self._add(block)
            form = block
        self.cache.drop(start, end, to=self.sinks + self.reserved)
        if had:
            self.cache.remove(self.sinks, self.sinks + self.reserved)
        if form is not None:
            self.cache.put(self._cells(form))
        return True

    def forget(self) -> None:
        super().forget()
        self._keys, self._values = [], []

    def _add(self, block: KvBlock) -> None:
        import numpy as np

        keys = [self._averaged(rows) for rows in self.cache.rotation().upright(block)]
        kinds = zip(block.form.value_types, block.values, strict=True)
        values = [self._averaged(elements(kind, rows)) for kind, rows in kinds]
        for held, new in ((self._keys, keys), (self._values, values)):
            joined = [np.concatenate(pair) for pair in zip(held, new, strict=True)] if held else new
            held[:] = [rows[-self.reserved :] for rows in joined]

    def _averaged(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Means of `group` rows each, the last of what is left."""
        import numpy as np

        size = self.options.group
        whole = len(rows) // size * size
        means = rows[:whole].reshape(-1, size, *rows.shape[1:]).mean(axis=1)
        return (
            means
            if whole == len(rows)
            else np.concatenate([means, rows[whole:].mean(axis=0, keepdims=True)])
        )

    def _cells(self, form: KvBlock) -> KvBlock:
        """All memory cells, at positions one after the other, in the form of a block of the
        cache."""
        import numpy as np

        places = np.arange(self.sinks, self.sinks + len(self._keys[0]), dtype=np.int32)
        rotation = self.cache.rotation()
        keys = zip(form.form.key_types, self._keys, strict=True)
        values = zip(form.form.value_types, self._values, strict=True)
        return replace(
            form,
            positions=places,
            keys=tuple(as_bytes(kind, rotation.turned(rows, places)) for kind, rows in keys),
            values=tuple(as_bytes(kind, rows) for kind, rows in values),
        )
