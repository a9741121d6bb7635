"""The cells of a context's tokens: dropped, moved, thinned out, taken out and put back.

Keys are turned in host memory, some thousand cells at a time, since a cell that moves must rotate
as if its token had been evaluated at the new place.
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime import llama, state
from ggext.runtime.cells import MAIN, SCRATCH, Cells
from ggext.runtime.closing import Closing
from ggext.runtime.model import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.regimes import Regime
    from ggext.runtime.rotation import KeyRotation

_MOVED_AT_ONCE = 4096  # cells that pass through host memory together


class MovableCells(Closing):
    """Tokens of a context and their cells, which belong to them at every moment.

    ``tokens`` and ``positions``: what is cached, in order; positions never fall. ``aligned``: so
    many first tokens were evaluated in the batches of a text that is read at once. ``epoch`` grows
    with each change, ``has_logits``: those after the last token are there.
    """

    model: Model
    # How positions are rotated at this length of the text.
    regime: Regime

    def __init__(self, handle: Any, window: int, *, small: bool) -> None:
        """``window`` and ``small``: as of `Cells`."""
        self._rotation: KeyRotation | None = None
        self.lib = llama.lib()
        self._make_cells = partial(Cells, window=window, small=small)
        self.cells = self._make_cells(handle)
        self._memory = self.lib.llama_get_memory(handle)
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.aligned = 0
        self.has_logits = False
        self.epoch = 0

    @abstractmethod
    def clear(self) -> None:
        """Empties it."""

    @abstractmethod
    def repeatable(self, count: int) -> int:
        """How many of the first `count` tokens were read in whole batches."""

    @abstractmethod
    def following(self, start: int, end: int) -> AbstractContextManager[None]:
        """A block in which tokens `start` to `end` leave, or those from `start` on move. Small
        windows, which have cells of their own, are brought into step after it."""

    @abstractmethod
    def _decode(self, batch: Any) -> int:
        """Evaluates a batch of llama.cpp's; its status, 0 where all went well."""

    def rotation(self) -> KeyRotation:
        """How this context rotates keys. Raises RopeError where that is not established."""
        from ggext.runtime.rotation import KeyRotation

        if self._rotation is None:
            self._rotation = KeyRotation(self.model.header, self.regime)
        return self._rotation

    def rotation_error(self) -> float:
        """How wrong `rotation` is in this context: of one token by itself at two positions far
        apart.

        A token that sees nothing but itself has the same keys everywhere but for their rotation, in
        every layer; so a layer that rotates otherwise, or not at all, shows. Relative to the
        largest key. Raises ModelError.
        """
        return self.rotation().error(self._alone(0), self._alone(self.regime.span - 1))

    def _alone(self, position: int) -> state.KvBlock:
        """The cells of one token that is evaluated by itself."""
        batch = self.lib.llama_batch()
        sequence = ctypes.pointer(ctypes.c_int32(SCRATCH))
        batch.n_tokens = 1
        batch.token = (ctypes.c_int32 * 1)(min(100, self.model.n_vocab - 1))
        batch.pos, batch.n_seq_id = (
            (ctypes.c_int32 * 1)(position),
            (ctypes.c_int32 * 1)(1),
        )
        batch.seq_id = (ctypes.POINTER(ctypes.c_int32) * 1)(sequence)
        llama.clear_log()
        if self._decode(batch) != 0:
            raise llama.failure(f"a token at position {position} cannot be evaluated")
        return self.cells.take_scratch()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A block that changes cells in several steps; whatever leaves it in the middle leaves an
        empty cache."""
        try:
            yield
        except BaseException:
            self.clear()
            raise

    def drop(self, start: int, end: int) -> None:
        """Tokens `start` to `end` leave; those after them close up. Raises ModelError."""
        distance = self.positions[start] - self.positions[end]
        with self.following(start, end):
            self.remove(self.positions[start], self.positions[end])
            self.aligned = self.repeatable(start)
            del self.tokens[start:end], self.positions[start:end]
            self._move(start, [place + distance for place in self.positions[start:]])

    def condense(
        self, start: int, end: int, extra: int, chosen: NDArray[np.intp]
    ) -> None:
        """Tokens `start` to `end` leave as tokens. Of their cells, and of the `extra` ones in front
        of them that belong to no token, those numbered in `chosen` (ascending) stay, at positions
        in a row; the tokens after them follow. Whatever leaves it in the middle leaves an empty
        cache. Raises ModelError."""
        import numpy as np

        first = start
        cells = extra + len(self.tokens) - start
        stay = np.concatenate([chosen, np.arange(extra + end - start, cells)])
        places = np.arange(first, first + len(stay), dtype=np.int32)
        with self.whole(), self.following(start, end):
            # Downward from the bottom, so that nothing lands among what is still to move.
            for at in range(0, cells, _MOVED_AT_ONCE):
                low, high = np.searchsorted(stay, (at, at + _MOVED_AT_ONCE))
                block = self.take(first + at, first + min(at + _MOVED_AT_ONCE, cells))
                self.remove(first + at, first + min(at + _MOVED_AT_ONCE, cells))
                if low < high:
                    self.put(
                        self.rotation().moved(
                            block.cells(stay[low:high] - at), places[low:high]
                        )
                    )
            del self.tokens[start:end], self.positions[start:end]
            self.positions[start:] = places[len(chosen) :].tolist()
            self.aligned = self.repeatable(start)

    def move(self, start: int, places: list[int]) -> None:
        """The tokens from index `start` on stand at `places` from now, their keys turned
        accordingly.

        Places do not fall. Keys are turned through host memory, some thousand cells at a time.
        """
        with self.following(start, start):
            self._move(start, places)

    def _move(self, start: int, places: list[int]) -> None:
        import numpy as np

        chunks = list(self._chunks(start))
        # Upward from the top and downward from the bottom, so that nothing lands among what is
        # still to move.
        for first, last in (
            reversed(chunks) if places[0] > self.positions[start] else chunks
        ):
            bounds = self.positions[first], self.positions[last - 1] + 1
            block = self.take(*bounds)
            if len(block) != last - first:
                raise ModelError(
                    f"llama.cpp has {len(block)} cells from position {bounds[0]}, not "
                    f"{last - first}"
                )
            self.remove(*bounds)
            self.put(
                self.rotation().moved(
                    block, np.array(places[first - start : last - start], np.int32)
                )
            )
        self.positions[start:] = places
        self.aligned = self.repeatable(start)

    def _chunks(self, start: int) -> Iterator[tuple[int, int]]:
        """The tokens from `start` on in runs that do not part tokens of one position."""
        while start < len(self.tokens):
            end = min(start + _MOVED_AT_ONCE, len(self.tokens))
            while (
                end < len(self.tokens)
                and self.positions[end] == self.positions[end - 1]
            ):
                end += 1
            yield start, end
            start = end

    def remove(self, first: int, last: int) -> None:
        """Frees the cells at positions `first` to `last` (-1: to the end), whatever tokens they
        belong to."""
        if not self.lib.llama_memory_seq_rm(self._memory, MAIN, first, last):
            raise ModelError(
                f"llama.cpp cannot remove positions {first} to {last} from this model's cache"
            )
        self.epoch += 1
        self.has_logits = False

    def take(self, first: int, last: int) -> state.KvBlock:
        """A copy of the cells at positions `first` to `last`."""
        return self.cells.take(first, last)

    def put(self, block: state.KvBlock) -> None:
        """Puts cells into the cache, at the positions that they name. Raises ModelError where they
        find no room."""
        self.cells.put(block)
        self.epoch += 1
        self.has_logits = False
