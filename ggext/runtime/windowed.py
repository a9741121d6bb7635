"""What layers with a sliding window have of a text, in a cache that holds the last tokens of these
layers alone: copied at some places, put back where the text is cut, and in step with tokens that
move.

These layers see the last tokens of the text, at their distances, whatever a policy takes out of
the others. So when the last token moves, the cells of its window move with it as they are: those
of tokens that have left the other layers too, as far as there are positions for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime import state
from ggext.runtime.movable import MovableCells
from ggext.runtime.window_copies import Checkpoint, Checkpoints

if TYPE_CHECKING:
    from ggext.runtime.state import KvBlock


class WindowedCells(MovableCells):
    """``checkpoints``: the copies. ``seam``: tokens have left after so many first ones; the cells
    of a small window are those of the text around them, and not of these first ones.
    ``insertion``: cells of no token stand in front of the token of this number. 0: there are
    none."""

    n_batch: int
    checkpoints: Checkpoints

    def __init__(self, handle: Any, window: int, *, small: bool) -> None:
        """``window`` and ``small``: as of `Cells`."""
        super().__init__(handle, window, small=small)
        self.seam = 0
        self.insertion = 0

    @contextmanager
    def following(self, start: int, end: int) -> Iterator[None]:
        if not self.cells.small:
            yield
            return
        last = self.positions[-1]
        window = self.cells.sliding()
        yield
        self._put_window([self._moved(window, self.positions[-1] - last)])
        if end > start:
            self.seam = max(start, self.seam - (end - start))
            self.checkpoints.leave(start, end)

    def close_gap(self, index: int, count: int, before: Checkpoint | None) -> None:
        """The `count` cells in front of the token at `index`, which belong to no token, leave, and
        those after them close up. ``before``: of small windows, what `keep_here` returned when
        these cells were not there. Raises ModelError; the cache is empty then."""
        places = self.positions[index:]
        with self.whole():
            window = self.cells.sliding() if self.cells.small else None
            self.remove(places[0] - count, places[0])
            self._move(index, [place - count for place in places])
            if window is not None:
                after = window.cells(window.positions >= places[0])
                parts = [] if before is None else [self._window_of(before, index)]
                self._put_window([*parts, self._moved(after, -count)])
        self.insertion = 0
        self.checkpoints.cut(index)  # later copies have those cells

    def _put_window(self, parts: Sequence[KvBlock]) -> None:
        """These cells are all that small windows have. Raises ModelError."""
        most = 2 * self.checkpoints.window  # no more of them is sure to have room
        self.cells.put_sliding(state.joined(parts).cells(slice(-most, None)))

    def _moved(self, block: KvBlock, distance: int) -> KvBlock:
        """As far as there are positions for them."""
        if not distance:
            return block
        stays = block.cells(block.positions + distance >= 0)
        return self.rotation().moved(stays, stays.positions + distance)

    def _window_of(self, copy: Checkpoint, count: int) -> KvBlock:
        """The cells of a copy up to the first `count` tokens, where they belong now."""
        place = count - 1 + copy.offset
        block = state.parse(copy.data, "sliding")
        return self._moved(
            block.cells(block.positions <= place), self.positions[count - 1] - place
        )

    def checkpoint(self, remaining: int = 0, *, likely: bool = False) -> None:
        """Makes it cheap to `cut` back to here later, where layers with a sliding window or a state
        would have forgotten it. With many tokens ``remaining`` to read only far after the last
        such place; ``likely``: a cut is."""
        count = len(self.tokens)
        near = likely or remaining <= 2 * self.n_batch
        if self.checkpoints.most and count > self.checkpoints.last + (
            0 if near else self.checkpoints.step
        ):
            self.checkpoints.add(self.copied_here(likely=likely))

    def keep_here(self) -> Checkpoint:
        """A copy of the window after the last token, to which a `cut` can go back too. Raises
        ModelError."""
        copy = self.copied_here(likely=True)
        if copy.count > self.checkpoints.last:
            self.checkpoints.add(copy)
        return copy

    def copied_here(self, *, likely: bool = False) -> Checkpoint:
        """A copy of the window or the state after the last token. Raises ModelError."""
        count = len(self.tokens)
        offset = self.positions[-1] - (count - 1) if self.positions else 0
        copies = self.checkpoints
        needed = 0 if copies.recurrent else copies.needed(count - 1 + offset)
        first = max(self.cells.first_position, needed) - offset
        data = self.cells.copied(sliding=True)
        since = max(self.seam, self.insertion)
        return Checkpoint(first, count, data, likely, offset, since)

    def copy_of(self, data: Any, count: int) -> Checkpoint:
        """What `copied_here` returned after the first `count` tokens, from its bytes, which may be
        a stranger's. Raises ModelError for those of another cache."""
        import numpy as np

        block = state.parse(data, "sliding")
        end = int(block.positions[-1]) if len(block) else -1
        steps = np.arange(end + 1 - len(block), end + 1)
        if end < 0 or not (
            np.array_equal(block.positions, steps)
            and block.is_like(self.cells.sliding())
        ):
            raise ModelError("the copy of a window is not one of this cache")
        rows = np.frombuffer(data, np.uint8)
        first = count - len(block)
        offset = end - (count - 1)
        return Checkpoint(
            first, count, rows, likely=True, offset=offset, since=self.seam
        )

    def reaches(self, count: int) -> bool:
        """Whether layers with a window have what the token after the first `count` attends to."""
        copies = self.checkpoints
        if copies.recurrent or not copies.window:
            return not copies.recurrent
        if not count:
            return False
        place = self.positions[count - 1] + 1
        if self.cells.small:
            apart = self.positions[-1] - place - (len(self.tokens) - 1 - count)
            if count <= self.seam or apart < 0:  # several tokens share a position
                return False
        return copies.covers(self.cells.first_position, place)

    def _back(self, count: int) -> int:
        """The most tokens up to `count` after which the text can go on, the windows' cells or the
        state being put back for it."""
        if self.reaches(count):
            return count
        checkpoint = self.checkpoints.nearest(count)
        if checkpoint is None:
            return 0
        try:
            if self.cells.small:
                self.cells.put_sliding(self._window_of(checkpoint, checkpoint.count))
            else:
                self.cells.replace(checkpoint.data, sliding=True)
        except ModelError:
            return 0  # what is evaluated again is as good
        return checkpoint.count
