"""The cells of a llama.cpp context as bytes: copied, put back, by position or all of a sequence."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime import llama, state

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAIN, SCRATCH = 0, 1  # sequences of the context
# LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: of layers with a sliding window or a state alone
_SLIDING = 1


class Cells:
    """The cells of one context; a new context needs a new one. ``window``: of a context with a
    second sequence, the tokens that layers with a sliding window attend to; ``small``: these layers
    hold the last tokens alone. Cells that are taken and put by positions are then those of the
    other layers, and `sliding` has theirs.

    llama.cpp writes of sliding layers what the last token of a sequence attends to, whatever else
    they hold. So cells are read in pieces of a window each.
    """

    def __init__(self, handle: Any, window: int = 0, *, small: bool = False) -> None:
        self._lib = llama.lib()
        self._handle = handle
        self._memory = self._lib.llama_get_memory(handle)
        self._tested = False
        self._piece_size = window if window and self.slides else 0
        #: Whether tokens may move apart from what sliding layers have of them.
        self.small = small and self._piece_size > 0
        #: 0: sliding layers are as the others, or there are none.
        self._window = 0 if self.small else self._piece_size

    @property
    def slides(self) -> bool:
        """Whether layers with a sliding window have a cache of their own."""
        return self._size(MAIN, _SLIDING) < self._size(MAIN, 0)

    @property
    def first_position(self) -> int:
        """The lowest position that all layers have; -1 where some have none."""
        return int(self._lib.llama_memory_seq_pos_min(self._memory, MAIN))

    @property
    def size(self) -> int:
        """Bytes of what `copied` returns, nearly."""
        size = self._size(MAIN, 0)
        end = self._end
        if not self._window or end <= self._window:
            return size
        seen = self._size(MAIN, _SLIDING)
        return size + seen * (end - self._window) // self._window

    @property
    def _end(self) -> int:
        """The position after the last one."""
        return int(self._lib.llama_memory_seq_pos_max(self._memory, MAIN)) + 1

    def copied(self, *, sliding: bool = False) -> NDArray[np.uint8]:
        """All cells as llama.cpp writes them; ``sliding``: of the layers with a sliding window,
        those that the last token attends to. Raises ModelError."""
        import numpy as np

        if self._window and not sliding:
            block = self.take(0, self._end)
            return np.frombuffer(state.build(block, MAIN), np.uint8)
        flags = _SLIDING if sliding else 0
        data = np.empty(self._size(MAIN, flags), np.uint8)
        llama.clear_log()
        if self._lib.llama_state_seq_get_data_ext(
            self._handle, _pointer(data), len(data), MAIN, flags
        ) != len(data):
            raise llama.failure("the cache cannot be copied")
        return data

    def replace(self, data: NDArray[np.uint8], *, sliding: bool = False) -> None:
        """Makes the cells those that `copied` returned, here or in a context that moves no cells.
        Raises ModelError; which are there then is not known."""
        if self.small and not sliding:
            data = state.with_window(data, self._piece_size)
        self._set(data, _SLIDING * sliding)
        if self._window and self.first_position > 0:
            raise ModelError(
                "of layers with a sliding window the copy has the last tokens alone, and a policy "
                "that moves cells needs all: the text must be read again"
            )

    def take(self, first: int, last: int) -> state.KvBlock:
        """A copy of the cells at positions `first` to `last`."""
        if self._window:
            return self._in_pieces(first, min(last, self._end), "all")
        part: state.Part = "whole" if self.small else "all"
        return self._piece(first, last, part)

    def _in_pieces(self, first: int, last: int, part: state.Part) -> state.KvBlock:
        """Of a window each, for llama.cpp writes no more of sliding layers."""
        step = self._piece_size
        # Windows may begin again at each multiple of their size (Llama 4).
        bounds = [first, *range(first + step - first % step, last, step), last]
        pieces = (self._piece(*pair, part) for pair in pairwise(bounds))
        return state.joined([*pieces])

    def _piece(self, first: int, last: int, part: state.Part) -> state.KvBlock:
        self._lib.llama_memory_seq_cp(self._memory, MAIN, SCRATCH, first, last)
        return self.take_scratch(part)

    def sliding(self) -> state.KvBlock:
        """A copy of what layers with a small window have: the cells of the last tokens, as many as
        were not written over, at positions in a row."""
        return self._in_pieces(max(self.first_position, 0), self._end, "sliding")

    def put_sliding(self, block: state.KvBlock) -> None:
        """Makes it all that these layers have. Raises ModelError; what they have is then not
        known."""
        import numpy as np

        data = np.frombuffer(state.build(block, MAIN), np.uint8)
        self._set(data, _SLIDING)

    def _set(self, data: NDArray[np.uint8], flags: int) -> None:
        llama.clear_log()
        if self._lib.llama_state_seq_set_data_ext(
            self._handle, _pointer(data), len(data), MAIN, flags
        ) != len(data):
            raise llama.failure("the cells of a cache cannot be put back")

    def put(self, block: state.KvBlock) -> None:
        """Puts cells into the cache, at the positions that they name. Raises ModelError where they
        find no room."""
        try:
            if not self._tested:
                self._test(block)
            self._into_scratch(block)
            self._lib.llama_memory_seq_cp(self._memory, SCRATCH, MAIN, -1, -1)
        finally:
            self._empty_scratch()

    def _into_scratch(self, block: state.KvBlock) -> None:
        data = state.build(block, SCRATCH)
        llama.clear_log()
        if self._lib.llama_state_seq_set_data(
            self._handle, _bytes(data), len(data), SCRATCH
        ) != len(data):
            raise llama.failure(f"{len(block)} cells cannot be put into the cache")

    def take_scratch(self, part: state.Part = "all") -> state.KvBlock:
        """The cells of the second sequence, of these layers; it is empty then."""
        try:
            return self._read_scratch(part)
        finally:
            self._empty_scratch()

    def _empty_scratch(self) -> None:
        self._lib.llama_memory_seq_rm(self._memory, SCRATCH, -1, -1)

    def _read_scratch(self, part: state.Part = "all") -> state.KvBlock:
        flags = _SLIDING if part == "sliding" else 0
        size = self._size(SCRATCH, flags)
        data = bytearray(size)
        buffer = (ctypes.c_uint8 * size).from_buffer(data)
        if (
            self._lib.llama_state_seq_get_data_ext(
                self._handle, buffer, size, SCRATCH, flags
            )
            != size
        ):
            raise llama.failure("the state of a sequence cannot be read")
        return state.parse(data, part)

    def _test(self, block: state.KvBlock) -> None:
        """Once for each context: what was put is what is read. Raises ModelError."""
        import numpy as np

        if self._window:
            block = block.cells(
                block.positions // self._window == block.positions[-1] // self._window
            )
        self._into_scratch(block)
        back = self._read_scratch(block.form.part)
        pairs: Any = zip(
            (back.positions, *back.keys, *back.values),
            (block.positions, *block.keys, *block.values),
            strict=True,
        )
        if back.form != block.form or not all(np.array_equal(a, b) for a, b in pairs):
            raise ModelError(
                "llama.cpp's state of a sequence does not read as it was written; ggext knows "
                "that of "
                f"llama-cpp-python {llama.VERSION}: pip install --force-reinstall "
                f'"llama-cpp-python=={llama.VERSION}"'
            )
        self._tested = True

    def _size(self, sequence: int, flags: int) -> int:
        return int(
            self._lib.llama_state_seq_get_size_ext(self._handle, sequence, flags)
        )


def _bytes(data: bytes) -> Any:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))


def _pointer(data: NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
