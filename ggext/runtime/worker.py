"""One thread that runs a model's sessions, and three ways to what they answer: a loop, asyncio, a
callback.

The sessions take turns, a batch of a prompt or a token of an answer at a time, so a long prompt in
one does not hold up the others, and llama.cpp's threads never fight each other.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ggext.errors import ModelError
from ggext.runtime import forks
from ggext.runtime.answering import Answering, End, Happening, Mailbox, Question
from ggext.runtime.closing import Closing
from ggext.runtime.engine import FinishReason, Session, common_prefix_length
from ggext.runtime.prefixes import worth

_AHEAD = (
    256  # parcels that wait for their reader before the worker leaves the answer alone
)
# No token waits longer than so many seconds for those that are handed over with it. A reader that
# wakes takes a core from llama.cpp's threads. They wait for each other some 500 times a token, and
# once one is late they fall asleep at each of these (benchmarks/results/writing.md).
_TOGETHER = 0.05
# Seconds without work, in which the reader has the cores for itself: most are done then.
_PAUSE = 0.0003
# What choosing a session weighs, in tokens that are read: waiting for an answer that is being made,
# and copying a token out of a context and back into it.
_WAITING = 512
_COPIED = 1 / 16
CLOSED = "the model is closed"
OTHER_PROCESS = (
    "the model was opened in another process, whose threads are not here: "
    "open it after the fork"
)


Callback = Callable[[Happening], None]
Result = TypeVar("Result")
Work = Callable[[], Generator[Happening, None, None]]


class _Job:
    """A question on its way through the worker; it outlives an `Answering` that was dropped."""

    def __init__(
        self,
        session: Session,
        work: Work,
        mailbox: Mailbox | None = None,
        tokens: Sequence[int] | None = None,
    ) -> None:
        self.session = session
        # What the session will hold then; None: what it held before.
        self.tokens = tokens
        self.mailbox = mailbox or Mailbox()
        self._work = work
        self._packed: list[Happening] = []
        self._writing = False
        self.callback: Callback | None = None
        self.paused = False
        self._parked = False
        self.ended = False
        self._cancelled = False
        self._lock = (
            threading.RLock()
        )  # a reader that is collected while its answer ends cancels in the same thread
        self._happenings: Generator[Happening, None, None] | None = None

    def cancel(self) -> None:
        """Ends the answer; one that waits for its turn at once, without a word to the session,
        which is another's."""
        with self._lock:
            if self.ended:
                return
            self._cancelled = True
            if self._parked:
                self.end(End("cancelled"))
            elif self._happenings is not None:
                self.session.cancel()
            elif (
                self.callback is None
            ):  # a callback is called in the worker's thread only
                self.end(End("cancelled"))

    @property
    def lags(self) -> bool:
        """Whether the answer's reader is slow; it wakes the thread when it goes on. What
        reading a prompt reports does not count: it ends, and holds the session until then."""
        self.paused = self._writing and self.mailbox.waiting() >= _AHEAD
        # Asked again: the reader may have looked just before.
        return self.paused and self.mailbox.waiting() >= _AHEAD

    def park(self) -> None:
        """Another question gets the session, until this one's next turn."""
        with self._lock:
            self._parked = True

    def turn(self, seconds: float, inbox: queue.SimpleQueue[_Job | None]) -> None:
        """One batch, or one token and those that come within so many seconds while nothing else
        does. Sets ``ended`` after the last one."""
        # What follows anything but a token is handed over at once: it is the first token.
        before = time.perf_counter()
        until = before + seconds if self._writing else 0.0
        try:
            happenings = self._happenings or self._begin()
            self._unpark()
            tell = self.callback or self._packed.append
            for happening in happenings:
                if isinstance(happening, End):
                    self.end(happening)
                    return
                tell(happening)
                self._writing = type(happening) is int
                now = time.perf_counter()
                next_at = now + (now - before)
                before = now
                if not self._writing or next_at >= until or not inbox.empty():
                    break
            self._send()
        except BaseException as error:  # noqa: BLE001 - raised where the answer is read
            self.end(End("cancelled", error))

    def _begin(self) -> Iterator[Happening]:
        with self._lock:
            if self.ended:
                return iter(())
            self.session.resume()  # a cancel of the question before, that came too late
            if self._cancelled:
                self.session.cancel()
            self._happenings = self._work()
            return self._happenings

    def _unpark(self) -> None:
        with self._lock:
            if self._parked and not self.ended:
                self._parked = False
                self.session.resume()  # a cancel that was meant for another question

    def _send(self) -> None:
        """Hands over what has been packed."""
        if not self._packed:
            return
        parcel = self._packed
        self._packed = []
        if not self.mailbox.put(parcel):
            self.cancel()
        elif self._writing and not self.ended and self.session.threads > 1:
            time.sleep(_PAUSE)

    def end(self, end: End) -> None:
        """Ends the answer, unless it has ended."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
        if self._happenings is not None:
            self._happenings.close()
        if self.callback is None:
            self._packed.append(end)
            self._send()
            return
        # An error of the callback was reported already, or no one listens.
        with suppress(Exception):
            self.callback(end)


def _answer(session: Session, question: Question) -> Generator[Happening, None, None]:
    ended = _ends(session)
    # The same seed gives the same answer, whatever is cached.
    repeatable = question.sampling.seed is not None
    prefill = yield from session.steps(question.tokens, repeatable=repeatable)
    yield prefill
    if prefill.cancelled:
        yield ended("cancelled")
        return
    generation = session.generate(question.sampling, question.max_tokens)
    generated: list[int] = []
    while (token := next(generation, None)) is not None:
        generated.append(token)
        yield token
        if not generation.is_current:  # the session answered another question meanwhile
            again = yield from session.steps([*question.tokens, *generated])
            if again.cancelled:
                yield ended("cancelled")
                return
            generation.go_on()
    assert generation.finish is not None
    yield ended(generation.finish)


def _ends(session: Session) -> Callable[[FinishReason], End]:
    """Makes the end of an answer that begins now, with what left the context until then."""
    dropped, forgotten = session.ever_dropped, session.forgotten
    return lambda finish: End(
        finish,
        dropped=session.ever_dropped - dropped,
        forgotten=session.forgotten - forgotten,
    )


class Worker(Closing):
    """The thread over some sessions of a model, each with its queue of questions. Close it before
    the model."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.sessions = tuple(sessions)
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._turn_of = [0] * len(sessions)
        self._numbers = itertools.count(1)
        self._lanes: tuple[deque[_Job], ...] = tuple(deque() for _ in sessions)
        self._closing = threading.Event()
        self._forks = forks.count
        self._lock = threading.Lock()
        arguments = (self._inbox, self._lanes, self._closing)
        self._thread = threading.Thread(
            target=_run, args=arguments, name="ggext worker", daemon=True
        )
        self._thread.start()
        # Also at the interpreter's end: a thread inside llama.cpp must not outlive it.
        self._stop = weakref.finalize(self, _stop, *arguments, self._thread)

    def ask(self, question: Question) -> Answering:
        """Starts an answer, which waits for its turn. Raises ModelError once closed, or in another
        process."""
        job = self._job(question)

        def taken() -> None:
            if job.paused:
                self.wake()

        answering = Answering(job.mailbox, job.cancel, taken)
        self._submit(job)
        return answering

    def start(self, question: Question, mailbox: Mailbox) -> Callable[[], None]:
        """Like `ask`, but into a mailbox of the caller's, who calls `wake` when parcels were taken
        from it. The result cancels."""
        job = self._job(question, mailbox)
        self._submit(job)
        return job.cancel

    def _job(self, question: Question, mailbox: Mailbox | None = None) -> _Job:
        session = self._session(question.tokens)
        return _Job(
            session, partial(_answer, session, question), mailbox, question.tokens
        )

    def listen(self, question: Question, callback: Callback) -> Callable[[], None]:
        """Like `ask`, but `callback` gets everything, in the worker's thread; it must not wait. The
        result cancels."""
        job = self._job(question)
        job.callback = callback
        self._submit(job)
        return job.cancel

    def do(self, session: Session, errand: Callable[[], Result]) -> Result:
        """Calls it in the worker's thread, after the session's answers; what it returns. Raises
        what it raises."""
        results: list[Result] = []

        def work() -> Generator[Happening, None, None]:
            results.append(errand())
            yield End("eog")

        job = _Job(session, work)
        self._submit(job)
        for end in job.mailbox.take() or ():
            if isinstance(end, End) and end.error is not None:
                raise end.error
        if not results:
            raise ModelError(CLOSED)
        return results[0]

    def run(self, session: Session, work: Work) -> None:
        """Runs it in the worker's thread, after the session's answers, and does not wait."""
        self._submit(_Job(session, work))

    def close(self) -> None:
        """Ends all answers as cancelled, then the thread. Further calls do nothing."""
        self._stop()

    def _submit(self, job: _Job) -> None:
        if forks.count != self._forks:
            raise ModelError(OTHER_PROCESS)
        with self._lock:
            if self._closing.is_set():
                raise ModelError(CLOSED)
            self._lanes[self.sessions.index(job.session)].append(job)
        self._inbox.put(None)

    def _session(self, tokens: Sequence[int]) -> Session:
        """The session where an answer to these tokens costs least: reading them, losing what it
        holds, and waiting for the answers before; of several the one that was asked least
        recently."""
        if len(self.sessions) == 1:
            return self.sessions[0]
        index = min(
            range(len(self.sessions)),
            key=lambda i: (self._cost(i, tokens), self._turn_of[i]),
        )
        self._turn_of[index] = next(self._numbers)
        return self.sessions[index]

    def _cost(self, index: int, tokens: Sequence[int]) -> float:
        """In tokens that are read."""
        session = self.sessions[index]
        lane = tuple(self._lanes[index])
        texts = [job.tokens for job in lane if job.tokens is not None]
        kept = 0 if session.prefixes is None else session.prefixes.hold(tokens)
        if texts:
            used = len(texts[-1])
            there = common_prefix_length(texts[-1], tokens)
        else:
            used = session.used
            there = session.holds(tokens)
        lost = used - there
        if not worth(lost, used):
            lost = 0
        keeps = session.prefixes is not None and session.prefixes.keeps
        losing = lost * _COPIED if keeps else lost
        return len(tokens) - max(there, kept) + losing + _WAITING * len(lane)

    def wake(self) -> None:
        """Looks again for an answer whose reader is no longer slow."""
        self._inbox.put(None)


def _run(
    inbox: queue.SimpleQueue[_Job | None],
    lanes: Sequence[deque[_Job]],
    closing: threading.Event,
) -> None:
    """The thread: a turn of each lane's first question, for ever."""
    while not closing.is_set():
        while not inbox.empty():
            inbox.get()
        active = [lane for lane in lanes if _has_work(lane)]
        if not active:
            inbox.get()
        seconds = _TOGETHER if len(active) == 1 else 0.0  # the others may take long
        for lane in active:
            if not lane[0].ended:
                lane[0].turn(seconds, inbox)
            if lane[0].ended:
                lane.popleft()
    for lane in lanes:
        while lane:
            lane.popleft().end(End("cancelled"))


def _has_work(lane: deque[_Job]) -> bool:
    """Whether the first question of a lane can go on. One whose reader is slow lets those
    after it pass: one reader never stops others."""
    for _ in range(len(lane)):
        if lane[0].ended:
            lane.popleft()
        elif not lane[0].lags:
            return True
        elif len(lane) > 1:
            lane[0].park()
            lane.rotate(-1)
    return False


def _stop(
    inbox: queue.SimpleQueue[_Job | None],
    lanes: Sequence[deque[_Job]],
    closing: threading.Event,
    thread: threading.Thread,
) -> None:
    closing.set()
    for lane in lanes:
        for job in tuple(lane):
            job.cancel()
    inbox.put(None)
    if thread is not threading.current_thread():
        thread.join()
