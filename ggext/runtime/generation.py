"""One answer, token by token."""

from __future__ import annotations

from typing import Literal

from ggext.errors import ModelError
from ggext.runtime.cache import Cache
from ggext.runtime.exclusive import Exclusive
from ggext.runtime.memory.base import Memory
from ggext.runtime.sampling import Chooser, Sampling

FinishReason = Literal["eog", "length", "context", "cancelled"]


class Generation:
    """The tokens of one answer. ``finish`` says why it ended, None while it goes on.

    "eog": the model ended it; "length": `max_tokens`; "context": the context is full; "cancelled".
    A token is in the session's cache once the next one was asked for.
    """

    def __init__(
        self,
        cache: Cache,
        memory: Memory,
        exclusive: Exclusive,
        sampling: Sampling,
        max_tokens: int | None,
    ) -> None:
        self.finish: FinishReason | None = None
        self.count = 0
        self._cache = cache
        self._memory = memory
        self._exclusive = exclusive
        self._max_tokens = max_tokens
        self._pending: int | None = None
        self._epoch = cache.epoch
        cache.model.vocabulary()  # raises where there is none
        self._is_last = cache.model.is_last
        self._chooser = Chooser(sampling, cache.model, cache.tokens)

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> int:
        if self.finish is None:
            with self._exclusive:
                token, reason = self._step()
            if token is not None:
                self.count += 1
                self._pending = token
                return token
            self._end(reason)
        raise StopIteration

    @property
    def is_current(self) -> bool:
        """Whether the session holds what this generation left in it."""
        return self._cache.epoch == self._epoch

    def go_on(self) -> None:
        """The session was used for something else, and has evaluated the prompt and all tokens so
        far again."""
        self._epoch = self._cache.epoch
        self._pending = None

    def _step(self) -> tuple[int, None] | tuple[None, FinishReason]:
        cache = self._cache
        if cache.epoch != self._epoch:
            raise ModelError(
                "the session was used for something else; start a new generation"
            )
        if self.count == self._max_tokens:
            return None, "length"
        if self._pending is not None:
            memory = self._memory
            if memory.limit is not None and len(cache.tokens) >= memory.limit:
                return None, "context"
            if cache.cancelled or not (
                memory.make_room(1) and memory.write(self._pending)
            ):
                return None, "cancelled"
            self._epoch = cache.epoch
        if cache.cancelled:
            return None, "cancelled"
        token = self._chooser.choose(cache.handle)
        return (None, "eog") if self._is_last(token) else (token, None)

    def _end(self, reason: FinishReason | None) -> None:
        self.finish = reason
        if reason == "cancelled":
            self._cache.resume()
        self.close()

    def close(self) -> None:
        """Frees the samplers; done at the end by itself."""
        self._chooser.close()

    def __del__(self) -> None:
        if hasattr(self, "_chooser"):
            self.close()
