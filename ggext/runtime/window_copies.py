"""What layers with a sliding window forget, and recurrent ones write over, kept aside at some
places of the text so that it can be cut back there.

A small cache of such layers holds the window and a batch; where its cells were used again, a token
after a cut would attend to nothing. llama.cpp's server decides by the lowest position that is
left, and keeps copies of those layers alone ("context checkpoints",
``tools/server/server-context.cpp``); so does this. Of a recurrent layer's state nothing can be
taken out: a copy serves for the very text that it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LIKELIER = 4
#: Tokens between two copies in the middle of a long text, at most.
_FAR = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A copy of the windows' cells, or of the state. Tokens are counted as those of the text that
    are in the cache; what stands in a window before them has numbers below."""

    # The number of the token of its first cell.
    first: int
    # Tokens of the text up to it.
    count: int
    # May have later cells too, of another text.
    data: NDArray[np.uint8]
    # Whether a text is often cut here: at the end of a question or of an answer.
    likely: bool = False
    # From the number of a token to the position of its cell in the copy.
    offset: int = 0
    # For so many first tokens or fewer it does not serve: others, which have left, stood before
    # the later ones.
    since: int = 0


class Checkpoints:
    """At most ``most`` copies for windows of ``window`` tokens, denser towards the end of the text;
    ``step``: tokens of a long text after which another is due. ``chunked``: a window begins again
    at each multiple of its size (Llama 4). ``recurrent``: the copies are of states; no window
    then."""

    def __init__(
        self, window: int, most: int, *, chunked: bool = False, recurrent: bool = False
    ) -> None:
        self.window = window
        self.chunked = chunked
        self.recurrent = recurrent
        self.most = most
        self.step = _FAR if recurrent else min(4 * window, _FAR)
        self._kept: list[Checkpoint] = []

    def needed(self, count: int) -> int:
        """The first position that the token after `count` tokens attends to."""
        if self.chunked:
            return count // self.window * self.window
        return max(count - self.window + 1, 0)

    def covers(self, first: int, count: int) -> bool:
        """Whether cells from position `first` on suffice to go on after `count` tokens."""
        return 0 <= first < count and first <= self.needed(count)

    @property
    def last(self) -> int:
        """Tokens at the last checkpoint, 0 without one."""
        return self._kept[-1].count if self._kept else 0

    def add(self, checkpoint: Checkpoint) -> None:
        """Keeps a checkpoint of more tokens than the last one has; another may go for it."""
        self._kept.append(checkpoint)
        if len(self._kept) > self.most:
            del self._kept[min(range(len(self._kept) - 1), key=self._loss)]

    def nearest(self, count: int) -> Checkpoint | None:
        """The one from which fewest tokens must be evaluated again to have `count`, its ``count``
        as far as it serves for that."""
        return max(self._until(count), key=_count, default=None)

    def cut(self, count: int) -> None:
        """The text is another one after its first `count` tokens."""
        useful: dict[int, Checkpoint] = {}
        for kept in self._until(count):
            useful.setdefault(
                kept.count, kept
            )  # of several the first, which reaches back farthest
        self._kept = list(useful.values())

    def _until(self, count: int) -> list[Checkpoint]:
        """Those that serve for some of the first `count` tokens, their ``count`` as far as they
        do."""
        if self.recurrent:
            return [kept for kept in self._kept if kept.count <= count]
        return [
            replace(kept, count=min(kept.count, count))
            for kept in self._kept
            if self._serves(kept, count)
        ]

    def _serves(self, kept: Checkpoint, count: int) -> bool:
        """Whether a copy has the window after the first `count` tokens, or all that it has of
        fewer."""
        if kept.count <= count:
            return True
        # Of a text that others have left, what stands in front of the window is no beginning.
        needed = count - self.window + 1 if kept.since else self.needed(count)
        return count > kept.since and kept.first <= needed

    def leave(self, start: int, end: int) -> None:
        """Tokens `start` to `end` are no more, and what is after them is counted from there."""
        gone = end - start
        others = (kept for kept in self._kept if not start < kept.count <= end)
        self._kept = [
            kept if kept.count <= start else _after(kept, start, gone)
            for kept in others
        ]

    @property
    def kept(self) -> tuple[Checkpoint, ...]:
        """All, in the order of the text; they may be set for a text that has them."""
        return tuple(self._kept)

    @kept.setter
    def kept(self, checkpoints: tuple[Checkpoint, ...]) -> None:
        self._kept = [*checkpoints]

    def prepend(self, earlier: Sequence[Checkpoint]) -> None:
        """Adds copies of earlier places of the text than those that are kept."""
        later = self._kept
        self._kept = []
        if self.most:
            for checkpoint in (*earlier, *later):
                self.add(checkpoint)

    def clear(self) -> None:
        """Forgets all."""
        self._kept = []

    def _loss(self, index: int) -> float:
        """What a cut back to this checkpoint would cost without it, as a share of the tokens that
        it takes away."""
        before = self._kept[index - 1].count if index else 0
        here = self._kept[index].count
        return (
            (here - before)
            / (self._kept[-1].count - here)
            * (_LIKELIER if self._kept[index].likely else 1)
        )


def _after(kept: Checkpoint, start: int, gone: int) -> Checkpoint:
    return replace(
        kept,
        first=kept.first - gone,
        count=kept.count - gone,
        offset=kept.offset + gone,
        since=max(start, kept.since - gone),
    )


def _count(checkpoint: Checkpoint) -> int:
    return checkpoint.count
