"""What left a cache comes back when it is asked for: a question at the end of a text finds the
cells that it attends to, and is read again with them (after InfLLM, Xiao et al. 2024; no training).

llama.cpp shares cells across layers, so one choice serves all of them. The cells stand at positions
that the policy keeps free for them. While an answer is written its own tokens may ask for others: a
quarter of the room is for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime.memory.options import MemoryOptions
from ggext.runtime.memory.outside import Outside, Run, united

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.outside import Layers
    from ggext.runtime.state import KvBlock

_QUESTION = 32  # tokens at the end of a text that ask
_EVERY = 16  # tokens of an answer between two looks
_OF_ANSWERS = 4  # one of so many cells is for what an answer asks for


class Retrieval:
    """The cells outside of one cache, and those of them that came back. ``room``: cells that come
    back at most; ``at``: the position from which on so many are free, which the policy moves."""

    def __init__(self, cache: Cache, options: MemoryOptions, room: int) -> None:
        self.cache = cache
        self.room = room
        self.sinks = self.at = options.sinks
        self.outside = Outside(
            quantized=options.leaves_as == "q8_0", spill=options.spill
        )
        #: In the cache, and to be there before the next token; in the order in which they left.
        self.fetched: tuple[Run, ...] = ()
        self._wanted: tuple[Run, ...] = ()
        #: What the question asked for, the most attended first.
        self._asked: tuple[Run, ...] = ()
        #: Of the question as far as it was read, each batch's in every layer.
        self._queries: list[Layers] = []
        self._written = 0

    def keep(self, block: KvBlock) -> None:
        """Cells that are about to leave."""
        self.outside.add(block, self.cache.rotation())

    def read(self, tokens: Sequence[int], left: int) -> bool:
        """Evaluates tokens, with so many of the text ``left`` after them; its last ones a second
        time, where what they ask for is not there. False: cancelled."""
        if not self.outside or left >= _QUESTION:
            return self.cache.append(tokens)
        try:
            if not self._watched(tokens):
                return False
            if not left:
                return self._answered()
        finally:
            if not left:
                self._queries = []
        return True

    def _answered(self) -> bool:
        """Brings back what the question asks for, and reads it again. False: cancelled."""
        import numpy as np

        cache = self.cache
        queries = [
            np.concatenate(rows)[-_QUESTION:]
            for rows in zip(*self._queries, strict=True)
        ]
        self._asked = self.outside.find(queries, self.room)
        self._wanted = united([self._asked], self.room)
        if self._wanted == self.fetched:
            return True
        # One token stays after the free positions, so that the next ones follow it.
        asking = min(len(queries[0]), len(cache.tokens) - self.sinks - 1)
        if asking < 1:
            return True
        start = len(cache.tokens) - asking
        question = cache.tokens[start:]
        cache.cut(start)
        self.fetch()
        return all(
            map(cache.append, cache.batches.split(question, start, cache.n_batch))
        )

    def write(self, token: int) -> bool:
        """Evaluates a token of an answer. False: cancelled."""
        self.fetch()
        self._written += 1
        if not self.outside or self._written % _EVERY:
            return self.cache.append_one(token)
        if not self._watched([token]):
            return False
        found = self.outside.find(self._queries.pop(), self.room // _OF_ANSWERS)
        self._wanted = united([found, self._asked], self.room)
        return True

    def _watched(self, tokens: Sequence[int]) -> bool:
        """Evaluates tokens and sees their queries. False: cancelled."""
        watcher = self.cache.queries
        with watcher.watching():
            if not self.cache.append(tokens):
                self._queries = []
                return False
        self._queries.append(watcher.take(self.cache.rotation()))
        return True

    def fetch(self) -> None:
        """Puts what is asked for at the positions that are free for it."""
        cache = self.cache
        wanted = self._wanted
        if wanted == self.fetched:
            return
        form = cache.take(0, 1).form
        with cache.whole():
            self.put_away()
            cache.put(self.outside.placed(wanted, self.at, form, cache.rotation()))
        self.fetched = wanted

    def put_away(self) -> None:
        """Frees the positions of what came back."""
        if self.fetched:
            self.cache.remove(self.at, self.at + self.room)
        self.fetched = ()

    def forget(self) -> None:
        """Nothing has left any more."""
        self.fetched = self._wanted = self._asked = ()
        self._queries = []
        self.outside.clear()

    def account(self) -> dict[str, Any]:
        """For JSON: what `resume` needs to know in addition to the cells; nothing where none has
        left."""
        if not self.outside:
            return {}
        return {
            "left": len(self.outside),
            "fetched": [*map(list, self.fetched)],
            "wanted": [*map(list, self._wanted)],
            "asked": [*map(list, self._asked)],
            "written": self._written,
        }

    def checked(self, account: Any, left: int) -> list[int]:
        """The positions of what came back, of a stranger's account of at most `left` cells outside.
        Raises ModelError for one that `account` did not make."""
        there = account if isinstance(account, dict) else {}
        count = there.get("left")
        written = there.get("written")
        if (
            isinstance(count, int)
            and 0 <= count <= left
            and isinstance(written, int)
            and written >= 0
            and all(
                self._are_runs(there.get(name), count)
                for name in ("fetched", "wanted", "asked")
            )
        ):
            cells = sum(end - start for start, end in there["fetched"])
            return [*range(self.at, self.at + cells)]
        raise ModelError("what it tells of the cells that left the context is damaged")

    def _are_runs(self, runs: Any, count: int) -> bool:
        """Whether these are runs of at most `room` of `count` cells, each cell once."""
        if not isinstance(runs, list) or not all(
            isinstance(run, list)
            and len(run) == 2
            and all(isinstance(bound, int) for bound in run)
            for run in runs
        ):
            return False
        ordered = [bound for run in sorted(runs) for bound in run]
        return (
            ordered == sorted(ordered)
            and all(start < end for start, end in runs)
            and (not ordered or (ordered[0] >= 0 and ordered[-1] <= count))
            and sum(end - start for start, end in runs) <= self.room
        )

    def resume(self, account: Any, blocks: Iterable[memoryview]) -> None:
        """Continues from what `account` and the cells outside were, over the cache of that time.
        Raises ModelError."""
        self.outside.restore(blocks, self.cache.take(0, 1), self.cache.rotation())
        if self.outside:
            self.fetched, self._wanted, self._asked = (
                tuple((start, end) for start, end in account[name])
                for name in ("fetched", "wanted", "asked")
            )
            self._written = account["written"]

    def saved(self) -> Iterator[bytes]:
        """The cells outside, for `resume`."""
        return self.outside.saved()

    def close(self) -> None:
        """Frees what is outside."""
        self.outside.close()
