"""A llama.cpp context and the tokens in it, kept in step: appended, cut, moved, taken out and put
back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.footprint.cache import CHECKPOINTS
from ggext.runtime import apart, llama, state
from ggext.runtime.cells import MAIN, SCRATCH, Cells
from ggext.runtime.closing import Closing
from ggext.runtime.context import SessionOptions, open_context, plan_context
from ggext.runtime.model import Model
from ggext.runtime.threads import Threads
from ggext.runtime.window_copies import Checkpoint, Checkpoints

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.queries import QueryWatcher
    from ggext.runtime.regimes import Regime
    from ggext.runtime.rotation import KeyRotation

_ABORTED = 2
_MOVED_AT_ONCE = 4096  # cells that pass through host memory together


class Cache(Closing):
    """The tokens of one context with their positions; keys and values belong to them at every
    moment.

    ``tokens`` and ``positions``: what is cached, in order; positions never fall. ``n_ctx`` in
    tokens, ``n_batch``: what `append` takes at most, ``batches``: those that a text is read in.
    ``epoch`` grows with each change, ``has_logits``: those after the last token are there.
    ``unsure``: tokens whose `append` was left in the middle, until `repair`. ``regimes``: what a
    text passes through as it grows.
    """

    def __init__(self, model: Model, options: SessionOptions) -> None:
        self.model = model
        self.lib = llama.lib()
        # The callbacks must live as long as the context.
        self._flag, self._abort = llama.abort_flag()
        self._watcher: QueryWatcher | None = None
        if options.memory.brings_back and options.eval_callback is None:
            options = replace(options, eval_callback=self.queries.callback)
        self._options = options
        self._plan = plan_context(model, options)
        self.n_ctx, self.batches, self.notices = (
            self._plan.n_ctx,
            self._plan.batches,
            self._plan.notices,
        )
        self.n_batch = self.batches.most
        self.threads = Threads(
            self._plan.threads, self._plan.most_threads, self._set_threads
        )
        self.kv_type = options.kv_type
        # What only stop and recompute can do is to be moved as a whole; the others stay in the last
        # regime.
        settled = options.memory.when_full not in ("stop", "recompute")
        self.regimes = self._plan.regimes[-1:] if settled else self._plan.regimes
        self.regime = self.regimes[0]
        self.handle = self._open(self.regime)
        self._memory = self.lib.llama_get_memory(self.handle)
        self.cells = Cells(self.handle)
        window = model.n_swa if self.cells.slides and not model.is_recurrent else 0
        forgets = model.is_recurrent or (window and not self._plan.whole_windows)
        self.checkpoints = Checkpoints(
            window,
            CHECKPOINTS if forgets else 0,
            chunked=model.architecture == "llama4",
            recurrent=model.is_recurrent,
        )
        self._one = (ctypes.c_int32 * 1)()
        self._batch_of_one = self.lib.llama_batch_get_one(self._one, 1)
        self.tokens: list[int] = []
        self.positions: list[int] = []
        # Of the first tokens: they were evaluated in the batches of a text that is read at once.
        self.aligned = 0
        self.has_logits = False
        self.epoch = 0
        self.unsure: Sequence[int] | None = None
        self._rotation: KeyRotation | None = None

    @property
    def queries(self) -> QueryWatcher:
        """Sees the queries of what is appended; only with the policy that reads them."""
        from ggext.runtime.queries import QueryWatcher

        if self._watcher is None:
            self._watcher = QueryWatcher()
        return self._watcher

    def _open(self, regime: Regime) -> Any:
        return open_context(
            self.model,
            self._options,
            self._plan,
            regime,
            (self._abort, ctypes.addressof(self._flag)),
        )

    def _set_threads(self, count: int) -> None:
        self.lib.llama_set_n_threads(self.handle, count, count)

    @property
    def flash_attention(self) -> bool:
        """Whether the context was made with it."""
        return self._plan.flash_attention

    def close(self) -> None:
        """Frees the context; further calls do nothing."""
        handle, self.handle = self.handle, None
        self.checkpoints.clear()
        if handle:
            self.lib.llama_free(handle)

    def cancel(self) -> None:
        """Stops the running `append` within one node of the graph, from any thread."""
        self._flag[0] = b"\1"

    def resume(self) -> None:
        """Takes back `cancel`."""
        self._flag[0] = b"\0"

    @property
    def cancelled(self) -> bool:
        return self._flag[0] != b"\0"

    @property
    def next_position(self) -> int:
        """Where the next token will stand."""
        return self.positions[-1] + 1 if self.positions else 0

    def append(self, tokens: Sequence[int], every_logit: bool = False) -> bool:
        """Evaluates tokens after the cached ones; False: cancelled, and those that were whole are
        kept.

        ``every_logit``: not only the last token's. Raises ModelError, also for more than
        ``n_batch`` tokens.
        """
        if len(tokens) > self.n_batch:  # llama.cpp would end the process
            raise ModelError(
                f"{len(tokens)} tokens at once are too many for a context of n_batch {self.n_batch}"
            )
        if len(self.tokens) + len(tokens) > self.regime.span and not self.grow(
            len(self.tokens) + len(tokens)
        ):
            return False
        self.unsure = tokens
        llama.clear_log()
        status = self._decode(self._batch(tokens, every_logit))
        if status != 0:
            return self._failed(status, len(tokens))
        if self.aligned == len(self.tokens) and len(tokens) == self.batches.at(
            self.aligned
        ):
            self.aligned += len(tokens)
        self._settle(len(tokens))
        self.epoch += 1
        self.has_logits = True
        return True

    def append_one(self, token: int) -> bool:
        """`append` of one token, the way of every generated one, and so without a needless step."""
        if len(self.tokens) >= self.regime.span and not self.grow(len(self.tokens) + 1):
            return False
        self._one[0] = token
        self.unsure = (token,)
        llama.clear_log()
        status = self._decode(self._batch_of_one)
        if status != 0:
            return self._failed(status, 1)
        self.positions.append(self.positions[-1] + 1 if self.positions else 0)
        self.tokens.append(token)
        self.unsure = None
        self.epoch += 1
        self.has_logits = True
        return True

    def logits(self) -> NDArray[np.float32]:
        """Those after the last token, (n_vocab,): llama.cpp's own memory, until the next token."""
        import numpy as np

        pointer = self.lib.llama_get_logits_ith(self.handle, -1)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def _decode(self, batch: Any) -> int:
        """llama.cpp's status of a batch. An interrupt stops a graph that Python watches."""
        if self._options.eval_callback is None:
            return int(self.lib.llama_decode(self.handle, batch))
        try:
            return int(
                apart.run(
                    lambda: self.lib.llama_decode(self.handle, batch), stop=self.cancel
                )
            )
        except BaseException:
            self.resume()
            raise

    def _failed(self, status: int, count: int) -> bool:
        self.epoch += 1
        self.repair()
        if status == _ABORTED:
            return False
        raise llama.failure(
            f"{count} tokens after {len(self.tokens)} cannot be evaluated"
        )

    def repair(self) -> None:
        """Brings tokens and cache into step again, where an `append` was left in the middle. A
        recurrent state is then of no text, whatever llama.cpp says: the last copy is put back."""
        assert self.unsure is not None
        if self.checkpoints.recurrent:
            self.unsure = None
            self._cut_before(self._back(len(self.tokens)))
            return
        reached = int(self.lib.llama_memory_seq_pos_max(self._memory, MAIN)) + 1
        self.has_logits = False
        self._settle(max(0, min(reached - self.next_position, len(self.unsure))))

    def _settle(self, count: int) -> None:
        assert self.unsure is not None
        start = self.next_position
        self.positions.extend(range(start, start + count))
        self.tokens.extend(self.unsure[:count])
        self.unsure = None

    def _batch(self, tokens: Sequence[int], every_logit: bool) -> Any:
        self._ids = (ctypes.c_int32 * len(tokens))(
            *tokens
        )  # the batch points into these
        batch = self.lib.llama_batch_get_one(self._ids, len(tokens))
        if every_logit:
            self._outputs = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
            batch.logits = self._outputs
        return batch

    def clear(self) -> None:
        """Empties the cache."""
        self.lib.llama_memory_clear(self._memory, False)
        self.checkpoints.clear()
        self.tokens, self.positions = [], []
        self.aligned = 0
        self.epoch += 1
        self.has_logits = False

    def snapshot(self) -> NDArray[np.uint8]:
        """All cells as llama.cpp writes them. Raises ModelError."""
        return self.cells.copied()

    def restore(
        self, tokens: list[int], state: NDArray[np.uint8], places: list[int]
    ) -> None:
        """The cells that `snapshot` wrote for these tokens, which stand at `places`. Raises
        ModelError."""
        self.start(len(tokens))
        with self.whole():
            self.cells.replace(state)
        self.tokens, self.positions = tokens, places
        self.epoch += 1

    def checkpoint(self, left: int = 0, *, likely: bool = False) -> None:
        """Makes it cheap to `cut` back to here later, where layers with a sliding window or a state
        would have forgotten it. With many tokens ``left`` to read only far after the last such
        place; ``likely``: a cut is."""
        count = len(self.tokens)
        near = likely or left <= 2 * self.n_batch
        if self.checkpoints.most and count > self.checkpoints.last + (
            0 if near else self.checkpoints.step
        ):
            needed = (
                0 if self.checkpoints.recurrent else self.checkpoints.needed(count - 1)
            )
            first = max(self.cells.first_position, needed)
            self.checkpoints.add(
                Checkpoint(first, count, self.cells.copied(sliding=True), likely)
            )

    def cut(self, count: int) -> int:
        """Cuts to the first `count` tokens; fewer where several share a position, or where layers
        with a sliding window or a state have forgotten what the next token needs; 0 where llama.cpp
        cannot cut."""
        if count == len(self.tokens):
            return count
        while count > 0 and self.positions[count] == self.positions[count - 1]:
            count -= 1
        return self._cut_before(self._back(count))

    def _cut_before(self, count: int) -> int:
        """Takes all but the first `count` tokens out; all, where llama.cpp cannot."""
        place = (
            self.positions[count] if count < len(self.positions) else self.next_position
        )
        if count == 0 or not self.lib.llama_memory_seq_rm(
            self._memory, MAIN, place, -1
        ):
            self.clear()
            return 0
        self.checkpoints.cut(count)
        self.aligned = self.repeatable(count)
        del self.tokens[count:], self.positions[count:]
        self.epoch += 1
        self.has_logits = False
        return count

    def repeatable(self, count: int) -> int:
        """Of the first `count` tokens those that need not be read again for the very numbers of a
        text that is read at once: whole batches from its beginning."""
        end = min(count, self.aligned)
        return max(self.batches.ends(0, end, self.n_batch), default=0)

    def _back(self, count: int) -> int:
        """The most tokens up to `count` after which the text can go on, the windows' cells or the
        state being put back for it."""
        copies = self.checkpoints
        if not copies.recurrent and (
            not copies.window or copies.covers(self.cells.first_position, count)
        ):
            return count
        checkpoint = copies.nearest(count)
        if checkpoint is None:
            return 0
        try:
            self.cells.replace(checkpoint.data, sliding=True)
        except ModelError:
            return 0  # what is evaluated again is as good
        return checkpoint.count

    @property
    def grows_by_rotation(self) -> bool:
        """Whether what is cached can move to another regime without being evaluated again."""
        return self._options.dynamic_ntk == "rotate"

    def regime_of(self, count: int) -> Regime:
        """The one for a text of `count` tokens."""
        return next(
            (regime for regime in self.regimes if count <= regime.span),
            self.regimes[-1],
        )

    def start(self, count: int) -> None:
        """Empties the cache, for a text of `count` tokens."""
        self.clear()
        if (regime := self.regime_of(count)) != self.regime:
            self._enter(regime)

    def grow(self, count: int) -> bool:
        """Moves to the context for a text of `count` tokens; False: cancelled, and what was moved
        is cached.

        Keys are rotated from the old table to the new one where that is asked for (dynamic NTK),
        which is exact in layer 0 and an approximation above; else all tokens are evaluated again.
        Raises ModelError.
        """
        regime = self.regime_of(count)
        if regime == self.regime:
            return True
        if self.grows_by_rotation:
            self._rotate_into(regime)
            return True
        tokens = self.tokens
        self._enter(regime)
        return self.append_all(tokens)

    def append_all(self, tokens: Sequence[int]) -> bool:
        """`append` of a text from its beginning, in its batches."""
        return all(map(self.append, self.batches.split(tokens, 0, self.n_batch)))

    def _enter(self, regime: Regime) -> None:
        """An empty cache in a context of another regime."""
        handle = self._open(regime)
        self.close()
        self.handle, self.regime, self._rotation = handle, regime, None
        self._set_threads(self.threads.now)
        self._memory, self.cells = self.lib.llama_get_memory(handle), Cells(handle)
        self.checkpoints.clear()
        self.tokens, self.positions = [], []
        self.aligned = 0
        self.epoch += 1
        self.has_logits = False

    def _rotate_into(self, regime: Regime) -> None:
        source, tokens, positions = self.rotation(), self.tokens, self.positions
        bounds = [
            (positions[first], positions[last - 1] + 1)
            for first, last in self._chunks(0)
        ]
        blocks = [self.take(*bound) for bound in bounds]
        self._enter(regime)
        with self.whole():
            for block in blocks:
                self.put(self.rotation().moved(block, block.positions, source))
        self.tokens, self.positions = tokens, positions

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

    def drop(self, start: int, end: int, to: int | None = None) -> None:
        """Tokens `start` to `end` leave; those after them move, the first of them to position `to`
        (None: to where the first dropped one was). Raises ModelError."""
        first = self.positions[start] if to is None else to
        distance = first - self.positions[end]
        self.remove(self.positions[start], self.positions[end])
        self.aligned = self.repeatable(start)
        del self.tokens[start:end], self.positions[start:end]
        if distance:
            self.move(start, [place + distance for place in self.positions[start:]])

    def condense(
        self, start: int, end: int, extra: int, chosen: NDArray[np.intp]
    ) -> None:
        """Tokens `start` to `end` leave as tokens. Of their cells, and of the `extra` ones in front
        of them that belong to no token, those numbered in `chosen` (ascending) stay, at positions
        in a row; the tokens after them follow. Whatever leaves it in the middle leaves an empty
        cache. Raises ModelError."""
        import numpy as np

        first, cells = start, extra + len(self.tokens) - start
        stay = np.concatenate([chosen, np.arange(extra + end - start, cells)])
        places = np.arange(first, first + len(stay), dtype=np.int32)
        with self.whole():
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
