"""A llama.cpp context and the tokens in it, kept in step: appended, cut, grown."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.footprint.cache import CHECKPOINTS
from ggext.llama_cpp_facts.sliding import CHUNKED
from ggext.runtime import apart, llama
from ggext.runtime.cells import MAIN
from ggext.runtime.context import SessionOptions, open_context, plan_context
from ggext.runtime.model import Model
from ggext.runtime.threads import ThreadCounts, Threads
from ggext.runtime.window_copies import Checkpoints
from ggext.runtime.windowed import WindowedCells

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.queries import QueryWatcher
    from ggext.runtime.regimes import Regime

_ABORTED = 2


class Cache(WindowedCells):
    """The tokens of one context with their positions; keys and values belong to them at every
    moment.

    ``n_ctx`` in tokens, ``n_batch``: what `append` takes at most, ``batches``: those that a text is
    read in. ``unsure``: tokens whose `append` was left in the middle, until `repair`. ``regimes``:
    what a text passes through as it grows.
    """

    def __init__(self, model: Model, options: SessionOptions) -> None:
        self.model = model
        # The callbacks must live as long as the context.
        self._flag, self._abort = llama.abort_flag()
        self._watcher: QueryWatcher | None = None
        if options.memory.brings_back and options.eval_callback is None:
            options = replace(options, eval_callback=self.queries.callback)
        self._options = options
        self._plan = plan_context(model, options)
        self.n_ctx = self._plan.n_ctx
        self.batches = self._plan.batches
        self.notices = self._plan.notices
        self.n_batch = self.batches.most
        self.threads = Threads(self._plan.threads, self._set_threads)
        self.kv_type = options.kv_type
        # What only stop and recompute can do is to be moved as a whole; the others stay in the last
        # regime.
        settled = options.memory.when_full not in ("stop", "recompute")
        self.regimes = self._plan.regimes[-1:] if settled else self._plan.regimes
        self.regime = self.regimes[0]
        self.handle = self._open(self.regime)
        small = not self._plan.whole_windows
        window = model.n_swa * options.edits_cache
        super().__init__(self.handle, window, small=small)
        self.checkpoints = self._copies(small=small)
        self._one = (ctypes.c_int32 * 1)()
        self._batch_of_one = self.lib.llama_batch_get_one(self._one, 1)
        self.unsure: Sequence[int] | None = None

    def _copies(self, *, small: bool) -> Checkpoints:
        """Where those are kept that small windows and states need."""
        model = self.model
        recurrent = model.is_recurrent
        window = model.n_swa if self.cells.slides and not recurrent else 0
        most = CHECKPOINTS if recurrent or (window and small) else 0
        chunked = model.architecture in CHUNKED
        return Checkpoints(window, most, chunked=chunked, recurrent=recurrent)

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

    def _set_threads(self, counts: ThreadCounts) -> None:
        self.lib.llama_set_n_threads(self.handle, counts.for_one, counts.now)

    @property
    def flash_attention(self) -> bool:
        """Whether the context was made with it."""
        return self._plan.flash_attention

    def close(self) -> None:
        """Frees the context; further calls do nothing."""
        handle = self.handle
        self.handle = None
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
        position = self.positions[-1] + 1 if self.positions else 0
        self.positions.append(position)
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
        # The batch points into these.
        self._ids = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self.lib.llama_batch_get_one(self._ids, len(tokens))
        if every_logit:
            self._outputs = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
            batch.logits = self._outputs
        return batch

    @property
    def has_nan(self) -> bool:
        """Whether the last logits are NaN: cells that are cut then would spoil later texts."""
        import numpy as np

        return self.has_logits and bool(np.isnan(self.logits()).any())

    def clear(self, *, wipe: bool = False) -> None:
        """Empties the cache. ``wipe``: whatever it holds, its bytes too, as after `has_nan`."""
        self.lib.llama_memory_clear(self._memory, wipe or self.has_nan)
        self._forget_tokens()

    def _forget_tokens(self) -> None:
        self.checkpoints.clear()
        self.seam = self.insertion = 0
        self.tokens = []
        self.positions = []
        self.aligned = 0
        self.epoch += 1
        self.has_logits = False

    def snapshot(self) -> NDArray[np.uint8]:
        """All cells as llama.cpp writes them. Raises ModelError."""
        return self.cells.copied()

    def restore(
        self, tokens: list[int], state: NDArray[np.uint8], places: Sequence[int]
    ) -> None:
        """The cells that `snapshot` wrote for these tokens, which stand at `places`. Raises
        ModelError."""
        self.start(len(tokens))
        with self.whole():
            self.cells.replace(state)
        self.tokens = tokens
        self.positions = list(places)
        self.epoch += 1

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
        emptied = count == 0 or self.has_nan
        if emptied or not self.lib.llama_memory_seq_rm(self._memory, MAIN, place, -1):
            self.clear()
            return 0
        self.checkpoints.cut(count)
        if count <= self.insertion:
            self.insertion = 0
        if count <= self.seam:
            self.seam = 0
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
        self.handle = handle
        self.regime = regime
        self._rotation = None
        self._set_threads(self.threads.counts)
        self._memory = self.lib.llama_get_memory(handle)
        self.cells = self._make_cells(handle)
        self._forget_tokens()

    def _rotate_into(self, regime: Regime) -> None:
        source = self.rotation()
        tokens = self.tokens
        positions = self.positions
        bounds = [
            (positions[first], positions[last - 1] + 1)
            for first, last in self._chunks(0)
        ]
        blocks = [self.take(*bound) for bound in bounds]
        self._enter(regime)
        with self.whole():
            for block in blocks:
                self.put(self.rotation().moved(block, block.positions, source))
        self.tokens = tokens
        self.positions = positions
