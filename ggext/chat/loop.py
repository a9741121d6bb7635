"""The chat: reads a line, does what it says, until the end. It draws nothing; a `Screen` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ggext.chat import transcript
from ggext.chat.ahead import ReadAhead
from ggext.chat.conversation import Conversation, Outcome, check_text, with_documents
from ggext.chat.fit import Room, choices
from ggext.chat.prompt import behind_system
from ggext.chat.reasoning import Thought
from ggext.chat.transcript import Turn
from ggext.errors import ContextFullError, GgextError, OutputError, UsageError

if TYPE_CHECKING:
    from ggext.chat.session import Keeper

_FINISHES = {
    "length": "the answer was stopped at its longest length (--max-tokens)",
    "context": "the context is full: the answer stops here, nothing was dropped",
    "cancelled": "stopped",
}
_WITHDRAWN = "stopped before the answer: the turn was taken back"
_KEPT = "the reading stops, what was read is kept; "
_HOW_TO_LEAVE = "Ctrl-C again or Ctrl-D leaves; during an answer Ctrl-C stops it"
_QUOTED = 40  # characters of a turn that left
_UNSEEN = "the model does not see them any more, /save keeps them"
_BETWEEN_RECORDS = 1.0  # seconds of an answer that a crash may cost


@dataclass(frozen=True)
class Status:
    """Where a chat stands after a turn. Tokens ``used`` of ``allocated``, and ``trained`` before
    any extension; ``ahead``: tokens of the turn that were read while it was typed."""

    used: int
    allocated: int
    trained: int
    outcome: Outcome
    ahead: int = 0

    def __str__(self) -> str:
        prefill, outcome = self.outcome.prefill, self.outcome
        ahead = f" and {self.ahead:,} while you typed" if self.ahead else ""
        return (
            f"context: {self.used:,} of {self.allocated:,} tokens, trained on {self.trained:,}; "
            f"read {prefill.evaluated:,}{_speed(prefill.evaluated, prefill.seconds)}{ahead}, "
            f"reused {prefill.reused - self.ahead:,}; "
            f"wrote {outcome.generated:,}{_speed(outcome.generated, outcome.seconds)}"
        )


class Screen(Protocol):
    """Where a chat is shown and typed. ``show_thoughts``: reasoning is shown, not only counted;
    ``markdown``: answers are painted as Markdown, where the screen can."""

    show_thoughts: bool
    markdown: bool

    def read(self, note: Callable[[], str] | None = None) -> str | None:
        """The next input, None at its end; ``note`` is a line to show meanwhile, and changes.
        Raises KeyboardInterrupt for Ctrl-C."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""

    def error(self, text: str) -> None:
        """Something that went wrong."""

    def status(self, status: Status) -> None:
        """The line after a turn."""

    def progress(self, done: int, total: int) -> None:
        """How much of a prompt is evaluated, in tokens."""

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """A block that may take long, and what is waited for."""

    def thought(self, text: str) -> None:
        """The next piece of the reasoning."""

    def answer(self, text: str) -> None:
        """The next piece of the answer."""

    def end_answer(self) -> None:
        """The answer, or the attempt at one, is over."""

    def interrupts(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """A block in which Ctrl-C calls `cancel` and nothing else."""


Command = Callable[["Chat", str], bool]


class Chat:
    """The loop over one conversation. ``documents`` wait for the next turn; ``keeper`` keeps the
    chat on disk."""

    def __init__(
        self, conversation: Conversation, screen: Screen, room: Room, keeper: Keeper | None = None
    ) -> None:
        self.conversation = conversation
        self.screen = screen
        self.room = room
        self.keeper = keeper
        self._is_kept = True  # as far as the last attempt went
        self.documents: list[str] = []
        self.unanswered: str | None = None
        self._ahead = ReadAhead(conversation)

    def run(self, obey: Command) -> None:
        """Until Ctrl-D, /quit, or Ctrl-C twice. An error in a turn is shown, and the chat goes on.

        ``obey`` does what a line that begins with / says; False ends the chat."""
        going_on, interrupted = True, False
        while going_on:
            try:
                line = self._typed()
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self.screen.notice(f"{_KEPT if self._ahead.interrupted() else ''}{_HOW_TO_LEAVE}")
                continue
            interrupted = False
            going_on = line is not None and self._obey(line, obey)

    def _typed(self) -> str | None:
        """The next input; what waits for the question is read meanwhile, where nothing can leave
        the context by it."""
        if not self.documents or self.room.when_full != "stop":
            return self.screen.read()
        with self._ahead.reading(self.documents) as note:
            return self.screen.read(note)

    def attach(self, name: str, document: str) -> None:
        """Puts a document into the next turn, and says whether it fits beside what waits
        already."""
        conversation, allocated = self.conversation, self.room.allocated
        self.documents.append(document)
        text = with_documents(self.documents, "")
        alone, tokens = (conversation.prompts.count(part) for part in (document, text))
        # Not what the cache holds: of that the chat may be cleared, or this very document be read
        # ahead.
        used = len(conversation.next_prompt(text)) - tokens if conversation.turns else 0
        together = f", {tokens:,} with what waits already" if len(self.documents) > 1 else ""
        self.screen.notice(
            f"{name}: {alone:,} tokens go into the next turn{together}; "
            f"{max(allocated - used, 0):,} are available"
        )
        may_leave = used if conversation.options.drop_turns else 0
        if used - may_leave + tokens > allocated and self.room.when_full == "stop":
            self.screen.notice("that is more than fits:")
            self.explain(used + tokens, used)

    def _obey(self, line: str, command: Command) -> bool:
        if not line.strip():
            return True
        try:
            if line.startswith("/"):
                return command(self, line)
            self.turn(line)
        except GgextError as error:
            self.screen.error(str(error))
        finally:
            self.record()
        return True

    def turn(self, question: str) -> None:
        """Sends a question, with the documents that wait. Raises what `Conversation.ask` raises."""
        question, (ahead, seconds) = with_documents(self.documents, question), self._ahead.taken()
        try:
            outcome = ask(self.conversation, self.screen, question, self.record)
        except ContextFullError as error:
            self.screen.error(
                f"the context is full: {error.requested:,} more tokens are needed, "
                f"{error.available:,} of "
                f"{error.used + error.available:,} are left. The turn was not sent, nothing was "
                "dropped; what helps:"
            )
            self.explain(error.used + error.requested, error.used)
            self._remind()
            return
        if outcome.kept:
            self.documents.clear()
            self.unanswered = None
        for notice in notices(outcome):
            self.screen.notice(notice)
        if outcome.finish == "context":
            self.screen.notice("/save FILE keeps the chat, /clear starts over")
        self._remind()
        self.screen.status(status(self.conversation, outcome, min(ahead, outcome.prefill.reused)))
        if self.keeper is not None:
            self.keeper.turn_over(outcome.prefill.seconds + seconds)

    def explain(self, needed: int, used: int) -> None:
        """The choices for a text that does not fit, in numbers."""
        for choice in choices(self.room, needed, used):
            self.screen.notice(f"  {choice}")

    def record(self) -> None:
        """Brings the journal up to date; where that fails it is said once, the chat goes on, and it
        is tried again each time."""
        if self.keeper is None:
            return
        try:
            note = self.keeper.record(self.conversation.so_far, self.conversation.left)
        except OutputError as error:
            if self._is_kept:
                self.screen.error(f"{error}; /save FILE keeps it elsewhere")
            self._is_kept = False
            return
        if note:
            self.screen.notice(note)
        if not self._is_kept:
            self.screen.notice("the chat is kept again, whole")
        self._is_kept = True

    def _remind(self) -> None:
        if self.documents:
            self.screen.notice("the document still waits for the next turn; /clear takes it out")


def ask(
    conversation: Conversation,
    screen: Screen,
    question: str,
    record: Callable[[], None] = lambda: None,
) -> Outcome:
    """One turn, its answer streamed to the screen; ``record`` is called before it and every second
    of it.

    Raises what `Conversation.ask` raises.
    """
    recorded = 0.0
    try:
        with screen.interrupts(conversation.engine.cancel):
            for piece in conversation.ask(question, lambda *counts: _read(screen, record, *counts)):
                (screen.thought if isinstance(piece, Thought) else screen.answer)(piece)
                if time.monotonic() - recorded > _BETWEEN_RECORDS:
                    record()
                    recorded = time.monotonic()
    finally:
        screen.end_answer()
    assert conversation.outcome is not None
    return conversation.outcome


def _read(screen: Screen, record: Callable[[], None], done: int, total: int) -> None:
    if (
        done == 0
    ):  # the question fits and is about to be read: from here on a crash shall not lose it
        record()
    screen.progress(done, total)


def load(conversation: Conversation, screen: Screen, path: Path, model: str) -> None:
    """Goes on with a saved chat, which the next turn will evaluate. Raises TranscriptError."""
    saved = transcript.load(path)
    conversation.restart(saved.turns)
    screen.notice(f"loaded {len(saved.turns)} turns from {path}")
    if saved.model != model:
        screen.notice(f"they were written with {saved.model!r:.80}; this is {model}")


def notices(outcome: Outcome) -> list[str]:
    """What left the context, and why the answer ended, unless the model ended it."""
    found = []
    if outcome.left:
        found.append(f"the context was full: {_oldest(outcome.left, 'left it')}; {_UNSEEN}")
    if outcome.dropped:
        found.append(f"the context was full: {outcome.dropped:,} of the oldest tokens left it")
    ending = _FINISHES.get(outcome.finish) if outcome.kept else _WITHDRAWN
    return [*found, ending] if ending else found


def left_earlier(conversation: Conversation) -> list[str]:
    """What of a chat that goes on had left the context, which may be larger than it was. Raises
    TemplateError."""
    gone = behind_system(conversation.turns)[: conversation.left]
    if not gone:
        return []
    seen_again = conversation.bring_back()
    so = "they fit into this one, and the next turn reads the chat again" if seen_again else _UNSEEN
    return [f"{_oldest(gone, 'left the context earlier')}; {so}"]


def _oldest(gone: Sequence[Turn], did: str) -> str:
    words = " ".join(gone[0].content.split())
    first = words if len(words) <= _QUOTED else f"{words[:_QUOTED]}…"
    return f"the {len(gone)} oldest turns {did}, from “{first}” on"


def status(conversation: Conversation, outcome: Outcome, ahead: int = 0) -> Status:
    """Where the chat stands after a turn; ``ahead``: tokens of it that were read before it was
    sent."""
    engine = conversation.engine
    return Status(engine.used, engine.used + engine.available, engine.trained, outcome, ahead)


def _speed(tokens: int, seconds: float) -> str:
    return f" at {tokens / seconds:,.0f}/s" if tokens and seconds > 0 else ""


def read_document(path: Path) -> str:
    """A text file. Raises UsageError when it cannot be read or is not UTF-8."""
    try:
        return check_text(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def without_question(turns: list[Turn]) -> tuple[list[Turn], str | None]:
    """Turns up to the last answer, and the question behind it that was never answered, if there is
    one."""
    if turns and turns[-1].role == "user":
        return turns[:-1], turns[-1].content
    return turns, None
