"""What left a cache comes back when it is asked for: a question at the end of a text finds the
passages that it attends to; they are read once more in front of it, and it after them.

Their old keys and values would save that reading, which is as long as the room for them. They were
tried: read in a window, they answer half as many questions (benchmarks/results/memory.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime.memory.gone import Gone
from ggext.runtime.memory.options import MemoryOptions
from ggext.runtime.memory.outside import Outside

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    from ggext.runtime.cache import Cache
    from ggext.runtime.state import KvBlock
    from ggext.runtime.window_copies import Checkpoint

#: Tokens of an answer that there is room for when it begins, where there can be.
ANSWER = 256
_QUESTION = 32  # tokens at the end of a text that ask
_LEAST = (
    2  # tokens of a question, so that one of them always stands after what came back
)
_AT_ONCE = 1024  # cells that pass through host memory together


@dataclass(frozen=True)
class Passages:
    """Cells that are in the cache in front of a question, and no part of its text."""

    # Tokens of the cache in front of them.
    index: int
    # How many cells.
    count: int
    # Tokens of the question after them.
    question_tokens: int


class Retrieval:
    """The text outside of one cache, and the passages of it that came back. ``room``: cells of
    those at most. ``question_tokens``: tokens at the end of the cache that are the beginning of a
    question, in front of which passages stood until now."""

    def __init__(self, cache: Cache, options: MemoryOptions, room: int) -> None:
        self.cache = cache
        self.room = room
        self.sinks = options.sinks
        self.outside = Outside(options.spill, options.evicted_memory)
        self.passages: Passages | None = None
        #: What small windows had in front of them.
        self._before: Checkpoint | None = None
        self.question_tokens = 0
        #: Of the question as far as it was read: each batch's queries, of each layer that is
        #: looked through.
        self._queries: list[Sequence[NDArray[float32]]] = []

    def keep(self, start: int, end: int) -> None:
        """Tokens `start` to `end` of the cache are about to leave."""
        cache, places = self.cache, self.cache.positions
        for first in range(start, end, _AT_ONCE):
            last = min(first + _AT_ONCE, end)
            block = cache.take(places[first], places[last - 1] + 1)
            self.outside.add(cache.tokens[first:last], self._keys(block))

    def _keys(self, block: KvBlock) -> list[NDArray[float32]]:
        """Keys before rotation, of each layer that is looked through."""
        rotation = self.cache.rotation()
        return rotation.upright(block, rotation.layers.looked_through)

    def read(self, tokens: Sequence[int], remaining: int) -> bool:
        """Evaluates tokens, with so many of the text ``remaining`` after them; its last ones a
        second time, after the passages that they ask for. False: cancelled."""
        self.leave()
        cache = self.cache
        # The window may have slid since.
        question_tokens = min(self.question_tokens, len(cache.tokens) - self.sinks - 1)
        self.question_tokens = 0
        start = len(cache.tokens) - question_tokens
        if question_tokens <= 0 or not cache.reaches(start):
            return self._read(tokens, remaining)
        whole = [*cache.tokens[start:], *tokens]
        cache.cut(start)
        after = remaining + len(whole)
        for batch in cache.batches.split(whole, start, cache.n_batch):
            after -= len(batch)
            if not self._read(batch, after):
                return False
        return True

    def _read(self, tokens: Sequence[int], remaining: int) -> bool:
        if not self.outside or remaining >= _QUESTION:
            return self.cache.append(tokens)
        try:
            if not self._watched(tokens):
                return False
            return remaining > 0 or self._answered()
        finally:
            if not remaining:
                self._queries = []

    def _watched(self, tokens: Sequence[int]) -> bool:
        """Evaluates tokens and sees their queries. False: cancelled."""
        watcher = self.cache.queries
        with watcher.watching(self.cache.rotation().layers):
            if not self.cache.append(tokens):
                self._queries = []
                return False
        self._queries.append(watcher.take(self.cache.rotation()))
        return True

    def _answered(self) -> bool:
        """Reads the passages that the question asks for, and the question again. False:
        cancelled."""
        import numpy as np

        cache = self.cache
        queries = [
            np.concatenate(rows)[-_QUESTION:]
            for rows in zip(*self._queries, strict=True)
        ]
        asking = min(len(queries[0]), len(cache.tokens) - self.sinks - 1)
        start = len(cache.tokens) - asking
        if asking < _LEAST or not cache.reaches(start):
            return True
        matches = self.outside.find(queries, self.room, lambda: cache.cancelled)
        question = cache.tokens[start:]
        cache.cut(start)
        if matches is None:
            return False
        passages = self.outside.tokens(matches)
        self._before = cache.keep_here() if cache.cells.small else None
        try:
            return self._append(passages) and self._append(question)
        finally:
            self._own(start, len(passages), asking)

    def _append(self, tokens: Sequence[int]) -> bool:
        cache = self.cache
        batches = cache.batches.split(tokens, len(cache.tokens), cache.n_batch)
        return all(map(cache.append, batches))

    def _own(self, index: int, count: int, question_tokens: int) -> None:
        """The passages are no part of the text; where nothing of the question came to stand after
        them, they leave."""
        cache = self.cache
        if cache.unsure is not None:
            cache.repair()
        if len(cache.tokens) > index + count:
            del cache.tokens[index : index + count]
            del cache.positions[index : index + count]
            self.passages = Passages(index, count, question_tokens)
            self.cache.insertion = index * (count > 0)
        elif len(cache.tokens) > index:
            cache.cut(index)

    def leave(self) -> None:
        """The passages leave, and the text closes up."""
        there, cache = self.passages, self.cache
        if there is None:
            return
        self.passages = None
        # A question that is cut, and asked again or in other words, is to be seen from its
        # beginning, and not to be read around its passages.
        following = len(cache.tokens) - there.index
        self.question_tokens = following if following < there.question_tokens else 0
        cache.close_gap(there.index, there.count, self._before)
        self._before = None

    def cut(self, kept: int) -> None:
        """Only the first tokens are left in the cache: passages after them leave."""
        there = self.passages
        if there is None or kept > there.index:
            return
        self.passages = self._before = None
        if kept == there.index:
            self.cache.remove(self.cache.next_position, -1)

    def forget(self) -> None:
        """Nothing has left any more."""
        self.passages = self._before = None
        self.question_tokens = 0
        self._queries = []
        self.outside.clear()

    def account(self) -> dict[str, Any]:
        """For JSON: what `resume` needs to know in addition to the text outside."""
        there = self.passages
        forgotten = self.outside.forgotten
        passages: dict[str, Any] = {}
        if there is not None:
            passages["passages"] = [*astuple(there)]
        if self._before is not None:
            passages["window"] = self._before.data.nbytes
        return passages | (
            {"forgotten": forgotten.as_json()} if forgotten.count else {}
        )

    def checked(self, account: Any, count: int) -> Passages | None:
        """Passages among `count` tokens, of a stranger's account. Raises ModelError for one that
        `account` did not make."""
        stated = account.get("passages") if isinstance(account, dict) else None
        if stated is None:
            return None
        match stated:
            case [int(index), int(cells), int(question_tokens)] if (
                self.sinks < index < count
                and 0 < cells <= self.room
                and 0 < question_tokens <= _QUESTION
            ):
                return Passages(index, cells, question_tokens)
        raise ModelError("what it tells of the passages that came back is damaged")

    def places(
        self, account: Any, places: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Where tokens stand that would stand at `places` without the passages of a stranger's
        account, and all cells of both. Raises ModelError."""
        there = self.checked(account, len(places))
        if there is None:
            return [*places], [*places]
        after = [place + there.count for place in places[there.index :]]
        passages = range(places[there.index], after[0])
        before = places[: there.index]
        return [*before, *after], [*before, *passages, *after]

    def resume(self, account: Any, blocks: Iterable[memoryview], gone: Gone) -> None:
        """Continues from what `account` and `saved` returned, when ``gone`` had left. Raises
        ModelError."""
        forgotten = _forgotten(account, gone)
        example = self._keys(self.cache.take(0, 1))
        window = memoryview(b"")
        for data in blocks:
            count = gone.count - forgotten.count
            end = len(data) - _window_bytes(account, len(data))
            self.outside.restore(data[:end], count, example, forgotten)
            window = data[end:]
        there = self.outside.forgotten.copy()
        there.add(gone.start, self.outside.tokens([(0, len(self.outside))]))
        if there != gone:
            raise ModelError("the text outside is not the one that left the context")
        self.passages = self.checked(account, len(self.cache.tokens))
        if self.passages is not None:
            index = self.cache.insertion = self.passages.index
            if window and self.cache.cells.small:
                self._before = self.cache.copy_of(window, index)

    def saved(self) -> Iterator[bytes]:
        """The text outside and what small windows had before the passages, for `resume`."""
        if self.outside:
            window = [] if self._before is None else [self._before.data.tobytes()]
            yield b"".join([*self.outside.saved(), *window])

    def close(self) -> None:
        """Frees what is outside."""
        self.outside.close()


def _window_bytes(account: Any, most: int) -> int:
    """Bytes of a window in a stranger's block of ``most``. Raises ModelError."""
    size = account.get("window", 0) if isinstance(account, dict) else 0
    if type(size) is not int or not 0 <= size <= most:
        raise ModelError("what it tells of the window before the passages is damaged")
    return size


def _forgotten(account: Any, gone: Gone) -> Gone:
    """What had been forgotten of the text outside, of a stranger's account. Raises ModelError."""
    saved = account.get("forgotten") if isinstance(account, dict) else None
    if saved is None:
        return Gone()
    try:
        forgotten = Gone.of_json(saved)
    except ValueError:
        forgotten = gone
    if forgotten.count >= gone.count:
        raise ModelError("what it tells of the text that was forgotten is damaged")
    return forgotten
