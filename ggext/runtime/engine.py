"""Tokens in, tokens out: a context of llama.cpp whose token list is always true to its cache."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ggext.errors import ContextFullError, ModelError, UsageError
from ggext.runtime import llama
from ggext.runtime.closing import Closing
from ggext.runtime.context import SessionOptions, new_context
from ggext.runtime.model import CancelledError, Model
from ggext.runtime.sampling import REPEAT_WINDOW, Sampling, new_chain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CancelledError",
    "FinishReason",
    "Generation",
    "Model",
    "Prefill",
    "Sampling",
    "Session",
    "SessionOptions",
]

FinishReason = Literal["eog", "length", "context", "cancelled"]
Progress = Callable[[int, int], None]

_ABORTED = 2


@dataclass(frozen=True)
class Prefill:
    """What `Session.evaluate` did: ``reused`` tokens were in the cache, ``evaluated`` were not."""

    reused: int
    evaluated: int
    seconds: float
    cancelled: bool


class Session(Closing):
    """One context over a model: a token list, its KV cache, and the logits behind its last token.

    Only one thread may use it at a time (ModelError otherwise); `cancel` may come from any thread.
    ``notices`` are sentences that the user should read. All counts are in tokens.
    """

    def __init__(self, model: Model, options: SessionOptions | None = None) -> None:
        self.model = model
        self._lib = llama.lib()
        self._lock = threading.Lock()
        self._tokens: list[int] = []
        self._has_logits = False
        self.epoch = 0
        # The callbacks must live as long as the context.
        self._flag, self._abort = llama.abort_flag()
        self._options = options or SessionOptions()
        made = new_context(model, self._options, self._abort, ctypes.addressof(self._flag))
        self._context = made.handle
        self.n_ctx = made.n_ctx
        self.n_batch = made.n_batch
        self.notices = made.notices
        self._memory = self._lib.llama_get_memory(self._context)
        model.sessions.add(self)

    def close(self) -> None:
        """Frees the context, after stopping what runs in it. Further calls do nothing."""
        self.cancel()
        with self._lock:
            context, self._context = self._context, None
            if context:
                self._lib.llama_free(context)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the cache, position by position."""
        return tuple(self._tokens)

    @property
    def used(self) -> int:
        """Tokens in the cache."""
        return len(self._tokens)

    @property
    def available(self) -> int:
        """Tokens that still fit."""
        return self.n_ctx - len(self._tokens)

    @property
    def trained(self) -> int:
        """Tokens that the model was trained on, before any extension."""
        return self.model.n_ctx_original

    def cancel(self) -> None:
        """Stops the running call within one node of the graph (on a GPU: within one batch).

        From any thread. A prefill keeps the batches that were whole; a generation ends with
        "cancelled". Without effect on a prefill that starts later.
        """
        self._flag[0] = b"\1"

    def evaluate(self, tokens: Sequence[int], progress: Progress | None = None) -> Prefill:
        """Makes the cache hold exactly `tokens`, evaluating only what follows the common prefix.

        `progress(done, total)` counts the tokens to evaluate, from 0. Raises ContextFullError
        before anything is changed when they do not fit, ModelError for a token that is none.
        """
        with self._exclusive():
            self._resume()
            wanted = self._checked(tokens)
            reused = self._reusable(wanted)
            if len(wanted) > self.n_ctx:
                raise ContextFullError(len(wanted) - reused, reused, self.n_ctx - reused)
            start = time.perf_counter()
            reused = self._keep(reused)
            finished = self._prefill(wanted[reused:], progress)
            evaluated = len(self._tokens) - reused
            seconds = time.perf_counter() - start
            if not finished:
                self._resume()
            return Prefill(reused, evaluated, seconds, cancelled=not finished)

    def generate(self, sampling: Sampling, max_tokens: int | None = None) -> Generation:
        """Continues the evaluated tokens: an iterator of token ids, without the one that ends it.

        Raises UsageError for a negative `max_tokens`, ModelError when nothing was evaluated.
        """
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"max_tokens is {max_tokens}, but must not be negative")
        with self._exclusive():
            self._check_logits()
            return Generation(self, sampling, max_tokens)

    def logits(self, tokens: Sequence[int], n_batch: int | None = None) -> NDArray[np.float32]:
        """The logits behind each of `tokens`, (n_tokens, n_vocab), evaluated from an empty cache.

        `n_batch` tokens at a time (None: the session's). Raises ContextFullError, CancelledError.
        """
        import numpy as np

        with self._exclusive():
            self._resume()
            wanted = self._checked(tokens)
            if len(wanted) > self.n_ctx:
                raise ContextFullError(len(wanted), 0, self.n_ctx)
            self._keep(0)
            rows = np.empty((len(wanted), self.model.n_vocab), np.float32)
            for batch in _batches(wanted, min(n_batch or self.n_batch, self.n_batch)):
                start = len(self._tokens)
                if not self._decode(batch, every_logit=True):
                    self._resume()
                    raise CancelledError(f"cancelled after {start} of {len(wanted)} tokens")
                pointer = self._lib.llama_get_logits(self._context)
                shape = (len(batch), self.model.n_vocab)
                rows[start : start + len(batch)] = np.ctypeslib.as_array(pointer, shape)
            return rows

    def clear(self) -> None:
        """Empties the cache."""
        with self._exclusive():
            self._keep(0)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise ModelError("the session is in use by another thread; open one for each thread")
        try:
            if not self._context:
                raise ModelError(f"the session over {self.model.path} is closed")
            yield
        finally:
            self._lock.release()

    def _resume(self) -> None:
        self._flag[0] = b"\0"

    def _cancelled(self) -> bool:
        return self._flag[0] != b"\0"

    def _check_logits(self) -> None:
        if not self._has_logits:
            raise ModelError("there is nothing to continue: evaluate the tokens first, to their end")

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        wanted = list(tokens)
        if not wanted:
            raise ModelError("there is no token to evaluate: the text and its template are empty")
        if min(wanted) < 0 or max(wanted) >= self.model.n_vocab:
            raise ModelError(f"a token is not in the vocabulary of {self.model.n_vocab} tokens")
        return wanted

    def _reusable(self, wanted: list[int]) -> int:
        """Tokens of the cache that need no evaluation; at least one is left, for its logits."""
        if wanted == self._tokens and self._has_logits:
            return len(wanted)
        pairs = zip(self._tokens, wanted, strict=False)
        common = next((i for i, (old, new) in enumerate(pairs) if old != new), None)
        if common is None:
            common = min(len(self._tokens), len(wanted))
        return min(common, len(wanted) - 1)

    def _keep(self, count: int) -> int:
        """Cuts the cache to its first `count` tokens; 0 where llama.cpp cannot cut (recurrent)."""
        if count == len(self._tokens):
            return count
        self.epoch += 1
        self._has_logits = False
        if count == 0 or not self._lib.llama_memory_seq_rm(self._memory, 0, count, -1):
            self._lib.llama_memory_clear(self._memory, False)
            count = 0
        del self._tokens[count:]
        return count

    def _prefill(self, tokens: list[int], progress: Progress | None) -> bool:
        done = 0
        for batch in _batches(tokens, self.n_batch):
            if progress is not None:
                progress(done, len(tokens))
            if self._cancelled() or not self._decode(batch):
                return False
            done += len(batch)
        if progress is not None:
            progress(done, len(tokens))
        return True

    def _decode(self, tokens: list[int], every_logit: bool = False) -> bool:
        """Appends tokens to the cache, and to the list those that got there; False: cancelled."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self._lib.llama_batch_get_one(ids, len(tokens))
        outputs = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
        if every_logit:
            batch.logits = outputs
        llama.clear_log()
        self.epoch += 1
        self._has_logits = False
        before = len(self._tokens)
        status = self._lib.llama_decode(self._context, batch)
        if status == 0:
            self._tokens += tokens
            self._has_logits = True
            return True
        cached = self._lib.llama_memory_seq_pos_max(self._memory, 0) + 1
        self._tokens = (self._tokens + tokens)[:cached]
        if status == _ABORTED:
            return False
        raise llama.failure(f"{len(tokens)} tokens after {before} cannot be evaluated")


class Generation:
    """The tokens of one answer. ``finish`` says why it ended, None while it goes on.

    "eog": the model ended it; "length": `max_tokens`; "context": the context is full; "cancelled".
    A token is in the session's cache once the next one was asked for.
    """

    def __init__(self, session: Session, sampling: Sampling, max_tokens: int | None) -> None:
        self.finish: FinishReason | None = None
        self.count = 0
        self._session = session
        self._max_tokens = max_tokens
        self._pending: int | None = None
        self._epoch = session.epoch
        self._lib = llama.lib()
        self._chain = new_chain(sampling, session.model.n_vocab)
        for token in session.tokens[-REPEAT_WINDOW:]:
            self._lib.llama_sampler_accept(self._chain, token)

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> int:
        if self.finish is not None:
            raise StopIteration
        with self._session._exclusive():
            token, reason = self._step()
        if token is None:
            self._end(reason)
            raise StopIteration
        self.count += 1
        self._pending = token
        return token

    def _step(self) -> tuple[int | None, FinishReason | None]:
        session = self._session
        if session.epoch != self._epoch:
            raise ModelError("the session was used for something else; start a new generation")
        if self.count == self._max_tokens:
            return None, "length"
        if self._pending is not None:
            if session.available == 0:
                return None, "context"
            if session._cancelled() or not session._decode([self._pending]):
                return None, "cancelled"
            self._epoch = session.epoch
        if session._cancelled():
            return None, "cancelled"
        token = int(self._lib.llama_sampler_sample(self._chain, session._context, -1))
        return (None, "eog") if session.model.is_eog(token) else (token, None)

    def _end(self, reason: FinishReason | None) -> None:
        self.finish = reason
        if reason == "cancelled":
            self._session._resume()
        self.close()

    def close(self) -> None:
        """Frees the sampler chain; done at the end by itself."""
        chain, self._chain = self._chain, None
        if chain:
            self._lib.llama_sampler_free(chain)

    def __del__(self) -> None:
        if getattr(self, "_chain", None):
            self.close()


def _batches(tokens: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]
