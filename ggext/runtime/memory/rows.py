"""Rows of bytes in blocks of one size, in memory or in a file: the oldest blocks can go, and what
they took is used again."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ggext.gguf.writer import output_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


#: What follows from a disk that fails, for `output_errors`.
SPILL_FAILED = (
    "what leaves the context is kept there: free some space, or name another folder"
)


class BlockFile:
    """A file without a name, which ends with the process, for blocks of bytes of one size. Raises
    OutputError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._free: list[int] = []
        self._places = 0
        with output_errors(folder, SPILL_FAILED):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - `close` closes it

    def write(self, block: NDArray[np.uint8]) -> int:
        """The place of the block, for `read` and `free`."""
        place = self._free.pop() if self._free else self._places
        with output_errors(self._folder, SPILL_FAILED):
            self._file.seek(place * block.nbytes)
            data = block.data.cast("B")
            while data:
                data = data[self._file.write(data) :]
        self._places = max(self._places, place + 1)
        return place

    def read(self, place: int, block: NDArray[np.uint8]) -> None:
        """Fills the block with what was written there."""
        with output_errors(self._folder, SPILL_FAILED):
            self._file.seek(place * block.nbytes)
            data = block.data.cast("B")
            while data:
                count = self._file.readinto(data)  # type: ignore[attr-defined]
                if not count:
                    raise OSError(f"{len(data)} bytes are missing in its file")
                data = data[count:]

    def free(self, place: int) -> None:
        """Another block may be written there."""
        self._free.append(place)

    def clear(self) -> None:
        """Forgets all."""
        self._free = []
        self._places = 0
        with output_errors(self._folder, SPILL_FAILED):
            self._file.truncate(0)

    def close(self) -> None:
        """The file is gone."""
        self._file.close()


class Rows:
    """Rows of ``width`` bytes in blocks of ``size`` rows, at most ``most`` blocks (None: any
    number); in memory, or in a file but for the newest block."""

    def __init__(
        self, width: int, size: int, most: int | None, file: BlockFile | None
    ) -> None:
        self._width = width
        self._size = size
        self._most = most
        self._file = file
        #: Blocks that are full; of a file, their places.
        self._full: deque[NDArray[np.uint8] | int] = deque()
        self._newest = self._empty()
        self._count = 0

    def _empty(self) -> NDArray[np.uint8]:
        import numpy as np

        return np.empty((self._size, self._width), np.uint8)

    def __len__(self) -> int:
        return len(self._full) * self._size + self._count

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return len(self) * self._width

    def append(self, rows: NDArray[np.uint8]) -> int:
        """Rows, (n, width), after those that are there; how many of the oldest went for them.
        Raises OutputError."""
        dropped = 0
        while len(rows):
            if self._count == self._size:
                dropped += self._begin()
            count = min(self._size - self._count, len(rows))
            self._newest[self._count : self._count + count] = rows[:count]
            self._count += count
            rows = rows[count:]
        return dropped

    def _begin(self) -> int:
        """A block after the newest one, which is full; how many of the oldest rows went."""
        dropped = 0
        if self._most is not None and len(self._full) + 1 >= self._most:
            dropped = self._size
            if not self._full:  # there is room for one block only
                self._count = 0
                return dropped
            oldest = self._full.popleft()
            if self._file is not None and isinstance(oldest, int):
                self._file.free(oldest)
        block = self._newest
        if self._file is None:
            self._full.append(block)
            self._newest = self._empty()
        else:
            self._full.append(self._file.write(block))
        self._count = 0
        return dropped

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The blocks, (n, width), the oldest first; each holds until the next is asked for."""
        from_file = self._empty() if self._file is not None and self._full else None
        for block in self._full:
            if not isinstance(block, int):
                yield block
            elif self._file is not None and from_file is not None:
                self._file.read(block, from_file)
                yield from_file
        yield self._newest[: self._count]
