"""An answer on its way from who makes it to who reads it, a thread or an event loop.

Who makes it puts parcels into a `Mailbox`, the reader's side is an `Answering`. Neither knows
whether the other is in this process.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ggext.runtime.closing import Closing
from ggext.runtime.engine import FinishReason, Prefill, Sampling

_POLL = 0.01  # seconds between two looks at an event that cancels


class Event(Protocol):
    """`threading.Event`, `asyncio.Event`, or anything else that can be asked."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Question:
    """What is asked of a session: ``tokens`` to continue, and how."""

    tokens: Sequence[int]
    sampling: Sampling
    max_tokens: int | None = None


@dataclass(frozen=True)
class End:
    """The last event of an answer: why it ended, or the error that ended it. ``dropped``: tokens
    that left the context for it, ``forgotten``: those for which there was no room outside."""

    finish: FinishReason
    error: BaseException | None = None
    dropped: int = 0
    forgotten: int = 0


#: What a session reports: tokens read and to read, what reading came to, a token, the end.
Happening = tuple[int, int] | Prefill | int | End


class Mailbox:
    """Parcels of what happens in one answer. Any thread puts, one thread or event loop takes."""

    def __init__(self) -> None:
        self._parcels: queue.SimpleQueue[list[Happening]] = queue.SimpleQueue()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = (
            None
        )

    def put(self, parcel: list[Happening]) -> bool:
        """Hands a parcel over; False: the loop that waited for it is closed, and no one reads."""
        self._parcels.put(parcel)
        waiter = self._waiter
        self._waiter = None
        if waiter is None:
            return True
        try:
            waiter[0].call_soon_threadsafe(_set, waiter[1])
        except RuntimeError:
            return False
        return True

    def waiting(self) -> int:
        """Parcels that were put and not taken."""
        return self._parcels.qsize()

    def take(self, timeout: float | None = None) -> list[Happening] | None:
        """The next parcel; None where none comes within so many seconds."""
        try:
            return self._parcels.get(timeout=timeout)
        except queue.Empty:
            return None

    async def await_parcel(
        self, timeout: float | None = None
    ) -> list[Happening] | None:
        """`take` for asyncio."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiter = asyncio.get_running_loop(), waiter
        # Only now: what is put after this look finds the waiter.
        if self._parcels.empty():
            await asyncio.wait([waiter], timeout=timeout)
        self._waiter = None
        return None if self._parcels.empty() else self._parcels.get_nowait()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Answering(Closing):
    """An answer that is being made: its tokens, for one `for` or `async for` loop;
    `next_happening` and `await_happening` give all that the session reports.

    ``prefill`` is there before the first token, ``finish`` and ``dropped`` after the last one, None
    and 0 until then. `cancel` may come from any thread; closing, leaving the loop by an exception
    and dropping the object cancel too. An error of the session is raised in the loop.

    ``cancel`` ends what is being made, ``taken`` is called for each parcel that was read.
    """

    def __init__(
        self, mailbox: Mailbox, cancel: Callable[[], None], taken: Callable[[], None]
    ) -> None:
        self.prefill: Prefill | None = None
        self.finish: FinishReason | None = None
        self.count = 0
        self.dropped = 0
        self.forgotten = 0
        self.cancel_event: Event | None = None
        self._mailbox = mailbox
        self._cancel = cancel
        self._taken = taken
        self._parcel: deque[Happening] = deque()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        while (happening := self.next_happening()) is not None:
            if type(happening) is int:
                return happening
        raise StopIteration

    def __aiter__(self) -> Answering:
        return self

    async def __anext__(self) -> int:
        while (happening := await self.await_happening()) is not None:
            if type(happening) is int:
                return happening
        raise StopAsyncIteration

    def next_happening(self) -> Happening | None:
        """What the session reports next, None after the end. Raises the session's error."""
        if self.finish is not None:
            return None
        try:
            if not self._parcel:
                self._unpack(self._wait())
            return self._noted(self._parcel.popleft())
        except BaseException:
            self.cancel()
            raise

    async def await_happening(self) -> Happening | None:
        """`next_happening` for asyncio."""
        if self.finish is not None:
            return None
        try:
            if not self._parcel:
                self._unpack(await self._await())
            return self._noted(self._parcel.popleft())
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Ends the answer within one node of llama.cpp's graph. Without effect on an answer that
        has ended."""
        self._cancel()

    close = cancel

    def __del__(self) -> None:
        if hasattr(self, "_cancel"):
            self._cancel()

    def _unpack(self, parcel: list[Happening]) -> None:
        self._parcel.extend(parcel)
        self._taken()

    def _noted(self, happening: Happening) -> Happening:
        if type(happening) is int:
            self.count += 1
        elif isinstance(happening, Prefill):
            self.prefill = happening
        elif isinstance(happening, End):
            self.finish = happening.finish
            self.dropped = happening.dropped
            self.forgotten = happening.forgotten
            if happening.error is not None:
                raise happening.error
        return happening

    def _wait(self) -> list[Happening]:
        while True:
            self._look()
            parcel = self._mailbox.take(self._patience)
            if parcel is not None:
                return parcel

    async def _await(self) -> list[Happening]:
        while True:
            self._look()
            parcel = await self._mailbox.await_parcel(self._patience)
            if parcel is not None:
                return parcel

    @property
    def _patience(self) -> float | None:
        return None if self.cancel_event is None else _POLL

    def _look(self) -> None:
        if self.cancel_event is not None and self.cancel_event.is_set():
            self.cancel()
