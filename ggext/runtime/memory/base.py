"""What every policy for a full context shares: which tokens left, and how many may come at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError, RopeError, UsageError
from ggext.footprint.cache import is_quantized
from ggext.runtime.memory.gone import Gone

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.options import MemoryOptions


#: Of a key's largest value: what 16 bits and llama.cpp's float32 angles at a million tokens come
#: to; a wrong table is off by 1.
_ROTATION_TOLERANCE = 0.06


#: Tokens read at once, at least, by a policy that reserves positions.
_LEAST_BATCH = 16


@dataclass(frozen=True)
class Layout:
    """A cache that can be kept: the positions where its tokens stand, in order, those of all of its
    cells, and how many blocks are outside of it."""

    places: Sequence[int]
    cells: Sequence[int]
    blocks: int = 0


class Memory(ABC):
    """Decides what stays in one cache. ``limit``: tokens that it can hold in all, None: any number.
    ``batch``: tokens that may be appended at once, at most. ``room``: tokens that may stand in the
    cache in a row, before any has moved. ``gone``: what left of this text, ``left_before``: tokens
    of other texts that left earlier."""

    limit: int | None = None

    def __init__(self, cache: Cache, options: MemoryOptions) -> None:
        self.cache = cache
        self.options = options
        self.batch = cache.n_batch
        self.room = cache.n_ctx
        self.gone = Gone()
        self.left_before = 0

    def batches(self, tokens: Sequence[int], start: int) -> Iterator[list[int]]:
        """Tokens that stand after `start` others of a text, in what is appended at once."""
        return self.cache.batches.split(tokens, start, self.batch)

    @abstractmethod
    def make_room(self, count: int) -> bool:
        """Makes room for `count` more tokens, at most ``batch``; False: cancelled."""

    def read(self, tokens: Sequence[int], remaining: int) -> bool:  # noqa: ARG002 - for policies that look ahead
        """Evaluates tokens for which there is room, with so many of the text ``remaining`` after
        them. False: cancelled."""
        return self.cache.append(tokens)

    def write(self, token: int) -> bool:
        """Evaluates one token of an answer, for which there is room. False: cancelled."""
        return self.cache.append_one(token)

    def reread_last(self) -> bool:
        """Evaluates the last token again, by itself: in a batch it is rounded otherwise. False:
        cancelled."""
        last = self.cache.tokens[-1]
        return self._take_last_out() and self.cache.append_one(last)

    def _take_last_out(self) -> bool:
        """Leaves all tokens but the last; False: cancelled, and fewer may be left."""
        tokens = [*self.cache.tokens]
        kept = self.cut_cache(len(tokens) - 1)
        between = self.batches(tokens[kept:-1], kept)
        return all(self.cache.append(batch) for batch in between)

    def copied(self) -> NDArray[np.uint8] | None:
        """A copy of the cells for `put_back`; the last token is evaluated again before, by itself.
        None: cancelled. Raises ModelError.

        Of layers that keep a state it is the one before the last token: none can be taken out of
        it, and what is put back is to be compared by that token's logits."""
        cache = self.cache
        if not cache.model.is_recurrent:
            return cache.snapshot() if self.reread_last() else None
        last = cache.tokens[-1]
        if not self._take_last_out():
            return None
        cache.checkpoint(likely=True)
        cells = cache.snapshot()
        return cells if cache.append_one(last) else None

    def put_back(
        self, tokens: list[int], cells: NDArray[np.uint8], places: Sequence[int]
    ) -> None:
        """Makes the cache what it was when `copied` returned `cells` for `tokens` at `places`; the
        logits of the last may be missing. Raises ModelError."""
        cache = self.cache
        if not cache.model.is_recurrent:
            cache.restore(tokens, cells, places)
            return
        cache.restore(tokens[:-1], cells, places[:-1])
        cache.checkpoint(likely=True)
        if not cache.append_one(tokens[-1]):
            raise ModelError("putting a text back into its context was cancelled")

    def take_up(self, gone: Gone) -> None:
        """This had left of the text that was put back."""
        self.gone = gone
        if self.cache.cells.small and gone.count:
            self.cache.seam = gone.start

    def cut(self, count: int) -> int:
        """Cuts the cache to its first `count` tokens, or fewer, and forgets what then is of no
        use."""
        kept = self.cut_cache(count)
        if self.gone.count and kept <= self.gone.start:
            self.forget()
        return kept

    def cut_cache(self, count: int) -> int:
        """Cuts the cache to its first `count` tokens, or fewer."""
        return self.cache.cut(count)

    def forget(self) -> None:
        """Nothing is after the first tokens any more."""
        self.left_before += self.gone.count
        self.gone = Gone()

    def close(self) -> None:
        """Frees what is kept outside the cache."""
        self.gone = Gone()

    @property
    def forgotten(self) -> int:
        """Tokens that had left and cannot be brought back any more, also of texts before."""
        return 0

    def account(self) -> dict[str, Any]:
        """For JSON: what `resume` needs to know in addition to the tokens, the cells and the
        blocks."""
        return {}

    def blocks_outside(self) -> Iterator[bytes]:
        """What is kept outside the cache, in blocks of one size."""
        yield from ()

    def layout(self, count: int, gone: Gone, account: Any) -> Layout:  # noqa: ARG002 - for policies that move tokens
        """How a cache is made up in which `count` tokens are when ``gone`` had left. Raises
        ModelError for an `account` that `account` did not make; it may be a stranger's."""
        return Layout([*range(count)], [*range(count)])

    def resume(self, account: Any, blocks: Iterable[memoryview]) -> None:  # noqa: B027 - most have nothing outside
        """Continues from what `account` and `blocks_outside` returned, of which `layout` was asked,
        over the cells of that time. Raises ModelError."""


class Window(Memory):
    """A policy that keeps the first ``sinks`` tokens and the most recent ones; older ones leave
    ``evict`` at a time. ``reserved``: cells that the policy fills itself, once tokens have left."""

    def __init__(self, cache: Cache, options: MemoryOptions, reserved: int = 0) -> None:
        super().__init__(cache, options)
        self.sinks = options.sinks
        self.reserved = reserved
        self.room = self.size = cache.n_ctx - reserved
        window = self.size - self.sinks
        self.evict = options.evict or max(window // 4, 1)
        # A window that is hardly larger than what leaves at once would be read token by token.
        least = min(_LEAST_BATCH, self.evict) if reserved else 1
        if self.evict + least > window:
            needed = self.sinks + reserved + self.evict + least
            raise UsageError(
                f"{options.when_full}: {self.sinks} sinks, {reserved} reserved, {self.evict} "
                f"tokens that leave at once and {least} that are read at once need a context of "
                f"{needed} tokens or more, not {cache.n_ctx}"
            )
        # When tokens must leave there are more than `evict` of them after the sinks: whatever a
        # batch makes of a window that was not quite full.
        self.batch = min(cache.n_batch, self.evict, window - self.evict)

    def make_room(self, count: int) -> bool:
        while len(self.cache.tokens) + count > self.size:
            if not self._leave(self.sinks, self.sinks + self.evict):
                return False
        return True

    def _leave(self, start: int, end: int) -> bool:
        """Tokens `start` to `end` of the cache leave it."""
        self.gone.add(start, self.cache.tokens[start:end])
        try:
            with self.cache.whole():
                return self.slide(start, end)
        finally:
            if (
                len(self.cache.tokens) < start
            ):  # it was left in the middle: what was in front is not there either
                self.forget()

    def forget(self) -> None:
        if self.reserved and self.gone.count:
            self.cache.remove(
                len(self.cache.tokens), -1
            )  # what the policy put after the first tokens
        super().forget()

    @abstractmethod
    def slide(self, start: int, end: int) -> bool:
        """Takes tokens `start` to `end` out of the cache; False: cancelled."""


def require_movable(cache: Cache, policy: str) -> None:
    """Raises ModelError where cached keys cannot be moved exactly, or llama.cpp rotates them
    otherwise than ggext."""
    remedy = "recompute works with every file"
    if is_quantized(cache.kv_type) and cache.kv_type != "q8_0":
        raise ModelError(
            f"when_full={policy!r} moves cached keys, and those of kv type {cache.kv_type} are too "
            f"coarse to be quantized again: take f16 or q8_0; {remedy}"
        )
    where = f"{cache.model.path}: when_full={policy!r} moves cached keys"
    if cache.model.is_recurrent:
        raise ModelError(
            f"{where}, and layers of {cache.model.architecture} keep one state of the whole text, "
            f"of which no part can be taken out; {remedy}"
        )
    try:
        error = cache.rotation_error()
    except RopeError as reason:
        raise ModelError(f"{where}: {reason}; {remedy}") from None
    if not math.isfinite(error):
        raise ModelError(
            f"{where}, and those of this file are no finite numbers: its weights are damaged"
        )
    if error > _ROTATION_TOLERANCE:
        raise ModelError(
            f"{where}, and llama.cpp turns those of this file otherwise (by {error:.2g}); {remedy}"
        )
