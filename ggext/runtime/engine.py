"""Tokens in, tokens out: a context of llama.cpp whose token list is always true to its cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggext.errors import ContextFullError, ModelError, UsageError
from ggext.runtime import kernels
from ggext.runtime.cache import Cache
from ggext.runtime.context import SessionOptions
from ggext.runtime.exclusive import Exclusive
from ggext.runtime.generation import FinishReason, Generation
from ggext.runtime.memory import MemoryOptions, new_memory
from ggext.runtime.memory.gone import Gone
from ggext.runtime.model import CancelledError, Model
from ggext.runtime.reuse import common_prefix_length, reusable
from ggext.runtime.sampling import Sampling
from ggext.runtime.session_account import SessionAccount

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.runtime.prefixes import Prefixes

__all__ = [
    "CancelledError",
    "FinishReason",
    "Generation",
    "MemoryOptions",
    "Model",
    "Prefill",
    "Sampling",
    "Session",
    "SessionOptions",
    "common_prefix_length",
]

Progress = Callable[[int, int], None]

_LOGITS_AT_ONCE = 1 << 25  # of a batch, all rows: 128 MiB


@dataclass(frozen=True)
class Prefill:
    """What `Session.evaluate` did: ``reused`` tokens needed no evaluation, ``evaluated`` did."""

    reused: int
    evaluated: int
    seconds: float
    cancelled: bool


class Session(SessionAccount):
    """One context over a model: a token list, its KV cache, and the logits after its last token.

    Only one thread may use it at a time (ModelError otherwise); `cancel` may come from any thread.
    ``notices`` are sentences that the user should read. All counts are in tokens. What happens when
    the context is full is the options' ``memory``; without it a full context is a ContextFullError.
    ``prefixes``: where texts are kept that leave for another one.
    """

    def __init__(
        self,
        model: Model,
        options: SessionOptions | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.model = model
        self.prefixes = prefixes
        self.options = options or SessionOptions()
        self.cache = Cache(model, self.options)
        try:
            self.memory = new_memory(self.cache, self.options.memory)
        except BaseException:
            self.cache.close()
            raise
        self._exclusive = Exclusive(self.cache)
        self.n_ctx = self.cache.n_ctx
        self.n_batch = self.cache.n_batch
        self.notices = (*filter(None, [kernels.check().notice]), *self.cache.notices)
        model.sessions.add(self)

    def close(self) -> None:
        """Frees the context, after stopping what runs in it. Further calls do nothing."""
        self.cancel()
        with self._exclusive.waiting():
            self.cache.close()
            self.memory.close()

    def evaluate(
        self,
        tokens: Sequence[int],
        progress: Progress | None = None,
        *,
        repeatable: bool = False,
    ) -> Prefill:
        """Makes the cache hold exactly `tokens`, evaluating only what follows the common prefix.

        `progress(done, total)` counts the tokens to evaluate, from 0. ``repeatable``: the logits
        are those of an empty cache, bit for bit; of the prefix only what was read in whole batches
        is reused then, so that each answer is read again. Raises ContextFullError before anything
        is changed when they do not fit, ModelError for a token that is none.
        """
        self.resume()
        with closing(self.steps(tokens, repeatable=repeatable)) as steps:
            while True:
                try:
                    counts = next(steps)
                except StopIteration as end:
                    prefill: Prefill = end.value
                    return prefill
                if progress is not None:
                    progress(*counts)

    def read_ahead(
        self,
        tokens: Sequence[int],
        progress: Progress | None = None,
        *,
        repeatable: bool = False,
    ) -> Prefill:
        """`evaluate` of the beginning of a text, to whole batches: the rest is then read in the
        batches that it would have had at once, and gives the same numbers bit for bit."""
        with self._exclusive:
            prompt = list(tokens)
            _, reused = (
                self._reusable(prompt, repeatable=repeatable) if prompt else (0, 0)
            )
        *_, end = (
            reused,
            *self.cache.batches.ends(reused, len(prompt), self.memory.batch),
        )
        return (
            self.evaluate(prompt[:end], progress, repeatable=repeatable)
            if end > reused
            else Prefill(reused, 0, 0.0, cancelled=False)
        )

    def steps(
        self, tokens: Sequence[int], *, repeatable: bool = False
    ) -> Generator[tuple[int, int], None, Prefill]:
        """`evaluate` in steps of a batch, each after a count of tokens done and in all; a `cancel`
        before the first step counts."""
        with self._exclusive:
            prompt = self._checked(tokens)
            kept, reused = self._reusable(prompt, repeatable=repeatable)
            limit = self.memory.limit
            if limit is not None and len(prompt) > limit:
                raise ContextFullError(len(prompt) - reused, reused, limit - reused)
            if self.cache.cancelled:
                self.resume()
                return Prefill(reused, 0, 0.0, cancelled=True)
            start = time.perf_counter()
            if self._exchanged(prompt, repeatable=repeatable):
                kept, reused = self._reusable(prompt, repeatable=repeatable)
            reused = self._keep(kept, len(prompt)) + self.dropped
            done = 0
            total = len(prompt) - reused
            try:
                for batch in self.memory.batches(prompt[reused:], reused):
                    yield done, total
                    self.cache.checkpoint(total - done, likely=not done)
                    if not self._read(batch, total - done - len(batch)):
                        break
                    done += len(batch)
                else:
                    self.cache.checkpoint(likely=True)
                    yield done, total
            finally:
                if done < total:
                    self.cache.has_logits = (
                        False  # those of a prompt's middle are nothing to continue
                    )
            cancelled = done < total
            if cancelled:
                self.resume()
            seconds = time.perf_counter() - start
            return Prefill(reused, done, seconds, cancelled)

    def generate(self, sampling: Sampling, max_tokens: int | None = None) -> Generation:
        """Continues the evaluated tokens: an iterator of token ids, without the one that ends it.

        Raises UsageError for a negative `max_tokens`, ModelError when nothing was evaluated.
        """
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"max_tokens is {max_tokens}, but must not be negative")
        with self._exclusive:
            self._check_logits()
            return Generation(
                self.cache, self.memory, self._exclusive, sampling, max_tokens
            )

    def logits(
        self, tokens: Sequence[int], n_batch: int | None = None
    ) -> NDArray[np.float32]:
        """The logits after each of `tokens`, (n_tokens, n_vocab), evaluated from an empty cache.

        At most `n_batch` tokens at a time (None: the session's). Raises ContextFullError,
        CancelledError.
        """
        import numpy as np

        return np.concatenate(
            [rows.copy() for rows in self.logit_rows(tokens, n_batch=n_batch)]
        )

    def logit_rows(
        self,
        tokens: Sequence[int],
        first: int = 0,
        n_batch: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """The logits after tokens[first:], batch by batch, (n_tokens, n_vocab); a block is
        llama.cpp's own memory and holds until the next is asked for.

        Tokens before `first` are evaluated as by `evaluate`; with none before it the cache is
        emptied. Raises ContextFullError, CancelledError.
        """
        import numpy as np

        if self.memory.limit is not None and len(tokens) > self.memory.limit:
            raise ContextFullError(len(tokens), 0, self.memory.limit)
        if first and self.evaluate(tokens[:first], progress).cancelled:
            raise CancelledError(f"cancelled before token {first} of {len(tokens)}")
        with self._exclusive:
            self.resume()
            checked = self._checked(tokens)
            if not first:
                self._keep(0, len(checked))
            done = first
            most = min(
                n_batch or self.memory.batch, self.memory.batch, self._rows_at_once()
            )
            for batch in self.cache.batches.split(checked[first:], first, most):
                if not (
                    self.memory.make_room(len(batch))
                    and self.cache.append(batch, every_logit=True)
                ):
                    self.resume()
                    raise CancelledError(
                        f"cancelled after {done} of {len(tokens)} tokens"
                    )
                done += len(batch)
                pointer = self.cache.lib.llama_get_logits(self.cache.handle)
                yield np.ctypeslib.as_array(pointer, (len(batch), self.model.n_vocab))

    def _rows_at_once(self) -> int:
        """Rows of logits that llama.cpp may hold: 128 of the largest vocabularies."""
        return max(16, _LOGITS_AT_ONCE // self.model.n_vocab)

    def last_logits(self) -> NDArray[np.float32]:
        """A copy of the logits after the last token, (n_vocab,). Raises ModelError when nothing
        was evaluated."""
        with self._exclusive:
            self._check_logits()
            return self.cache.logits().copy()

    def snapshot(self) -> NDArray[np.uint8]:
        """The cache as llama.cpp writes it, for `restore` over the same file and options. The last
        token is evaluated again before, by itself: in a batch it is rounded otherwise, with flash
        attention by 1 % of the logits' range. Raises ModelError, also where it ``can_be_kept`` no
        more."""
        with self._exclusive:
            self.resume()
            self._checked(self.cache.tokens)
            if not self.can_be_kept:
                raise ModelError(
                    "a cache in which a policy has moved tokens apart cannot be taken for its "
                    "tokens"
                )
            cells = self.memory.copied()
            if cells is None:
                self.resume()
                raise CancelledError("copying the cache was cancelled")
            return cells

    def restore(
        self,
        tokens: Sequence[int],
        state: NDArray[np.uint8],
        places: Sequence[int],
        gone: Gone,
    ) -> None:
        """Makes the cache what `snapshot` returned for `tokens` at `places`, when ``gone`` had left
        it. Raises ModelError; the cache is empty then. llama.cpp trusts the positions in it:
        `runtime.store` checks them."""
        with self._exclusive:
            prompt = self._checked(tokens)
            self.memory.cut(0)
            self.memory.put_back(prompt, state, places)
            self.memory.take_up(gone)

    def reread_last(self) -> None:
        """Evaluates the last token by itself, as `snapshot` does, unless its logits are there.
        Raises ModelError."""
        with self._exclusive:
            self.resume()
            if not self.cache.has_logits and not self.memory.reread_last():
                self.resume()
                raise CancelledError("reading the last token again was cancelled")

    def compress(self, share: float) -> None:
        """Leaves this share of the cells in use now, those of the tokens that stand out most; the
        first and the most recent tokens stay. Raises UsageError with another policy than
        compress."""
        from ggext.runtime.memory.compress import Compress

        with self._exclusive:
            if not isinstance(self.memory, Compress):
                raise UsageError(
                    f"only a context of the policy compress can be compressed, not one of "
                    f"{self.memory.options.when_full}"
                )
            if not 0 < share <= 1:
                raise UsageError(f"share is {share:g}, but must be above 0, at most 1")
            self.memory.reduce(int(share * (self.used + self.memory.selected)))

    def clear(self) -> None:
        """Empties the cache."""
        with self._exclusive:
            self.memory.cut(0)

    def _check_logits(self) -> None:
        if not self.cache.has_logits:
            raise ModelError(
                "there is nothing to continue: evaluate the tokens first, to their end"
            )

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        prompt = list(tokens)
        if not prompt:
            raise ModelError(
                "there is no token to evaluate: the text and its template are empty"
            )
        if min(prompt) < 0 or max(prompt) >= self.model.n_vocab:
            raise ModelError(
                f"a token is not in the vocabulary of {self.model.n_vocab} tokens"
            )
        return prompt

    def _reusable(
        self, prompt: list[int], *, repeatable: bool = False
    ) -> tuple[int, int]:
        """Tokens of the cache that stay, and those of `prompt` that need no evaluation: as many,
        and those that left the cache in between. At least one is evaluated, for its logits, unless
        they are there."""
        cache = self.cache
        gone = self.memory.gone
        stays, count = reusable(cache.tokens, gone, prompt)
        if repeatable and count == stays:
            count = stays = cache.repeatable(min(stays, len(prompt) - 1))
        elif count == len(prompt) and not (
            cache.has_logits and stays == len(cache.tokens)
        ):
            count = count - 1
            stays = stays - 1
        return (
            (gone.start, gone.start) if stays == gone.start < count else (stays, count)
        )

    def _keep(self, count: int, prompt_length: int) -> int:
        """Cuts the cache to its first `count` tokens, or fewer, for a text of `prompt_length`."""
        cache = self.cache
        stays = (
            cache.regime_of(prompt_length).span <= cache.regime.span
            or cache.grows_by_rotation
        )
        cut_at = count if stays else 0
        kept = self.memory.cut(cut_at)
        if kept == 0:
            cache.start(prompt_length)
        return kept

    def _exchanged(self, prompt: list[int], *, repeatable: bool) -> bool:
        """Whether another text was put into the cache, or tried to be."""
        return self.prefixes is not None and self.prefixes.exchange(
            self.cache, self.memory, prompt, repeatable=repeatable
        )

    def _read(self, batch: list[int], remaining: int) -> bool:
        if self.cache.cancelled:
            return False
        self.cache.threads.look()
        return self.memory.make_room(len(batch)) and self.memory.read(batch, remaining)
