"""One thread at a time over one cache, in the process that made it, until it is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from ggext.errors import ModelError
from ggext.runtime import forks
from ggext.runtime.cache import Cache


class Exclusive:
    """A lock that does not wait: ``with exclusive:`` is the caller's alone, or a ModelError.

    It is refused in a process that was forked off since, and once the cache is closed. Inside, the
    cache is in step with its tokens: a call that was left in the middle is repaired first.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._path = cache.model.path
        self._forks = forks.count
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if forks.count != self._forks:
            raise ModelError(
                f"the session over {self._path} is another process's: open the model after the fork"
            )
        if not self._lock.acquire(False):
            raise ModelError(
                "the session is in use by another thread; open one for each thread"
            )
        cache = self._cache
        try:
            if not cache.handle:
                raise ModelError(f"the session over {self._path} is closed")
            if cache.unsure is not None:
                cache.repair()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The lock after whoever has it, without a look at the cache: for closing it."""
        with self._lock:
            yield
