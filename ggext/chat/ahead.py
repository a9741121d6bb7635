"""Documents that wait for a question are read while it is typed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ggext.chat.conversation import with_documents
from ggext.errors import GgextError

if TYPE_CHECKING:
    from ggext.chat.conversation import Conversation

_REPEAT = 0.02  # seconds


class ReadAhead:
    """Reads what is certain of the next turn in a thread of its own."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._read_tokens = 0
        self._seconds = 0.0
        self._done = self._total = 0
        self._started_at = 0.0
        self._given_up = ""
        self._tokens: list[int] = []
        self._for_what: tuple[object, ...] = ()
        self._interrupted = False

    @contextmanager
    def reading(self, documents: Sequence[str]) -> Iterator[Callable[[], str] | None]:
        """A block during which the documents are read; yields what tells how far that is, None
        where there is nothing to read. Its end stops the reading and keeps what was read; Ctrl-C in
        it leaves the rest to the question."""
        beginning = with_documents(documents, "")
        if beginning == self._given_up:
            yield None
            return
        self._done = self._total = 0
        thread = threading.Thread(target=self._read, args=(beginning,), daemon=True)
        thread.start()
        try:
            yield self.note
        except KeyboardInterrupt:
            self._given_up = beginning
            self._interrupted = self._done < self._total
            raise
        finally:
            # A cancel that comes before the reading begins is without effect.
            while thread.is_alive():
                self._conversation.engine.cancel()
                thread.join(_REPEAT)

    def give_up(self, documents: Sequence[str]) -> None:
        """Leaves the rest of these documents to the question: the user stopped their reading."""
        self._given_up = with_documents(documents, "")

    def interrupted(self) -> bool:
        """Whether Ctrl-C has just ended a reading."""
        interrupted = self._interrupted
        self._interrupted = False
        return interrupted

    def note(self) -> str:
        """How far the reading is, in one line: of all that is certain of the turn, also where some
        of it is cached already."""
        if not self._total:
            return ""
        if self._done == self._total:
            return "the document is read but for its last tokens, which the question decides"
        clock = ""
        if self._done:
            each = (time.monotonic() - self._started_at) / self._done
            remaining = each * (self._total - self._done)
            clock = f", {remaining // 60:.0f}:{remaining % 60:02.0f} left"
        whole = len(self._tokens)
        done = whole - self._total + self._done
        return f"reading the document meanwhile: {done:,} of {whole:,} tokens{clock}"

    def taken(self) -> tuple[int, float]:
        """Tokens that were read for the turn that begins now, and the seconds that it took."""
        taken = self._read_tokens, self._seconds
        self._read_tokens = 0
        self._seconds = 0.0
        return taken

    def _read(self, beginning: str) -> None:
        try:
            self._prepare(beginning)
            self._started_at = time.monotonic()
            prefill = self._conversation.engine.read_ahead(
                self._tokens, self._count, repeatable=self._conversation.is_repeatable
            )
        except GgextError:  # the turn itself will tell
            return
        self._read_tokens += prefill.evaluated
        self._seconds += prefill.seconds

    def _prepare(self, beginning: str) -> None:
        """A book is not cut into tokens again for each command that is typed before its
        question."""
        conversation = self._conversation
        for_what = (
            beginning,
            tuple(conversation.turns),
            conversation.options,
            conversation.prompts.think,
        )
        if for_what != self._for_what:
            self._tokens = conversation.certain(beginning)
            self._for_what = for_what

    def _count(self, done: int, total: int) -> None:
        self._done = done
        self._total = total
