"""The chat: reads a line, does what it says, until the end. It draws nothing; a `Screen` does."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.chat import transcript
from ggext.chat.ahead import ReadAhead
from ggext.chat.conversation import Conversation, Outcome, with_documents
from ggext.chat.documents import Document
from ggext.chat.fit import Room, choices
from ggext.chat.notices import notices, status
from ggext.chat.reasoning import Thought
from ggext.chat.report import in_one_line
from ggext.chat.screens import Screen
from ggext.chat.transcript import Turn, questions
from ggext.errors import ContextFullError, GgextError, OutputError

if TYPE_CHECKING:
    from ggext.chat.kept_settings import KeptSettings
    from ggext.chat.session import Keeper

#: Does what a line that begins with / says; False ends the chat.
Command = Callable[["Chat", str], bool]
#: Opens a context of so many tokens (None: as a new chat chooses) with a policy, in place of the
#: one that is there; what bounds it now, and what the user should know.
Reopen = Callable[[int | None, str], tuple[Room, list[str]]]

_KEPT = "the reading stops, what was read is kept; "
_HOW_TO_LEAVE = "Ctrl-C again or Ctrl-D leaves; during an answer Ctrl-C stops it"
_BETWEEN_RECORDS = 1.0  # seconds of an answer that a crash may cost
_LEAVE = ("exit", "quit", "bye")
_BLOCK = '"""'
#: A line that begins so is a command; a path or a comment that begins with / is text.
_COMMAND = re.compile(r"/[A-Za-z?][A-Za-z-]*(\s|$)|/\?(\s|$)")


class Chat:
    """The loop over one conversation. ``documents`` wait for the next turn; ``keeper`` keeps the
    chat on disk, with the ``settings`` that it has; ``unanswered``: a question that was typed and
    has no answer; ``debug``: an error of ggext shows its traceback."""

    def __init__(
        self,
        conversation: Conversation,
        screen: Screen,
        room: Room,
        keeper: Keeper | None = None,
        *,
        debug: bool = False,
    ) -> None:
        self.conversation = conversation
        self.screen = screen
        self.room = room
        self.keeper = keeper
        self._is_kept = True  # as far as the last attempt went
        self.documents: list[Document] = []
        self.unanswered: str | None = None
        self.reopen: Reopen | None = None
        self.settings: Callable[[], KeptSettings] | None = None
        self._debug = debug
        self._ahead = ReadAhead(conversation)

    @property
    def waiting(self) -> list[str]:
        """The texts of the documents that wait for the next turn."""
        return [one.text for one in self.documents]

    def run(self, obey: Command) -> None:
        """Until Ctrl-D, /quit, or Ctrl-C twice. An error in a turn is shown, and the chat goes on.

        ``obey`` does what a line that begins with / says; False ends the chat."""
        going_on = True
        interrupted = False
        while going_on:
            try:
                line = self._typed()
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self.screen.notice(
                    f"{_KEPT if self._ahead.interrupted() else ''}{_HOW_TO_LEAVE}"
                )
                continue
            interrupted = False
            going_on = line is not None and self._obey(line, obey)

    def _typed(self) -> str | None:
        """The next input; what waits for the question is read meanwhile, where nothing can leave
        the context by it."""
        if not self.documents or self.room.when_full != "stop":
            return self._whole(self.screen.read())
        with self._ahead.reading(self.waiting) as note:
            return self._whole(self.screen.read(note))

    def _whole(self, line: str | None) -> str | None:
        """A line, or all the lines of a block between two triple quotes."""
        if line is None or not line.startswith(_BLOCK):
            return line
        text = line.removeprefix(_BLOCK)
        while _BLOCK not in text:
            more = self.screen.read()
            if more is None:
                return None
            text += f"\n{more}"
        block, _, rest = text.partition(_BLOCK)
        return f"{_BLOCK}{block}{rest}"

    def attach(self, document: Document) -> None:
        """Puts a document into the next turn, and says whether it fits together with what waits
        already."""
        if not document.text.strip():
            self.screen.notice(f"{document.name} is empty: there is nothing to read")
            return
        conversation = self.conversation
        allocated = self.room.allocated
        self.documents.append(document)
        text = with_documents(self.waiting, "")
        alone, tokens = (
            conversation.prompts.count(part) for part in (document.text, text)
        )
        # Not what the cache holds: of that the chat may be cleared, or this very document be read
        # ahead.
        used = len(conversation.next_prompt(text)) - tokens if conversation.turns else 0
        together = (
            f", {tokens:,} with what waits already" if len(self.documents) > 1 else ""
        )
        made_from = f" ({document.made_from})" if document.made_from else ""
        self.screen.notice(
            f"{document.name}{made_from}: {alone:,} tokens go into the next turn{together}; "
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
            if line.strip() in _LEAVE:
                return False
            if _COMMAND.match(line):
                return command(self, line)
            self.turn(_text(line))
        except GgextError as error:
            self.screen.error(str(error))
        except KeyboardInterrupt:
            self.screen.notice("stopped")
        # Whatever it is, the chat and what was typed are worth more than the turn.
        except Exception as error:  # noqa: BLE001 - said in one line
            if self._debug:
                self.screen.error("".join(traceback.format_exception(error)).rstrip())
            self.screen.error(in_one_line(error))
        finally:
            self.record()
        return True

    def turn(self, question: str) -> None:
        """Sends a question, with the documents that wait. Raises what `Conversation.ask` raises."""
        self.unanswered = question
        whole = with_documents(self.waiting, question)
        ahead, seconds = self._ahead.taken()
        try:
            outcome = ask(self.conversation, self.screen, whole, self.record)
        except ContextFullError as error:
            self._does_not_fit(error, whole)
            return
        if outcome.kept:
            self.documents.clear()
            self.unanswered = None
        else:
            self._ahead.give_up(self.waiting)
        for notice in notices(outcome):
            self.screen.notice(notice)
        if outcome.finish == "context":
            self.screen.notice("/save FILE keeps the chat, /clear starts over")
        self._remind()
        self.screen.status(
            status(self.conversation, outcome, min(ahead, outcome.prefill.reused))
        )
        if self.keeper is not None:
            self.keeper.turn_over(outcome.prefill.seconds + seconds)

    def _does_not_fit(self, error: ContextFullError, turn: str) -> None:
        needed = error.used + error.requested
        capacity = error.used + error.available
        # Not what the cache holds: of this very turn a document may have been read ahead.
        used = max(needed - len(self.conversation.first_prompt(turn)), 0)
        what = (
            "with this turn the chat has"
            if self.conversation.turns
            else "this turn has"
        )
        self.screen.error(
            f"{what} {needed:,} tokens, {needed - capacity:,} more than the context of "
            f"{capacity:,} holds. The turn was not sent, nothing was dropped; what helps:"
        )
        self.explain(needed, used)
        self._remind()

    def explain(self, needed: int, used: int, *, running: bool = True) -> None:
        """The choices for a text that does not fit, in numbers. ``running``: commands can be
        typed."""
        for choice in choices(self.room, needed, used, running=running):
            self.screen.notice(f"  {choice}")

    def record(self) -> None:
        """Brings what is kept up to date; where that fails it is said once, the chat goes on, and
        it is tried again each time."""
        if self.keeper is None:
            return
        try:
            note = self.keeper.record(
                self.conversation.so_far, self.conversation.dropped_turns
            )
            if self.settings is not None:
                self.keeper.keep_settings(self.settings())
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
            self.screen.notice(
                "the document still waits for the next turn; /clear takes it out"
            )


def _text(line: str) -> str:
    """What is sent of a line that is no command: all of it but what made it text."""
    if line.startswith(_BLOCK):
        return line.removeprefix(_BLOCK).strip("\n")
    return line[1:] if line.startswith((" /", "//")) else line


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
            for piece in conversation.ask(
                question, lambda *counts: _read(screen, record, *counts)
            ):
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
    ):  # the question fits and is about to be read: a crash must not lose it any more
        record()
    screen.progress(done, total)


def load(conversation: Conversation, screen: Screen, path: Path, model: str) -> None:
    """Continues a saved chat, which the next turn will evaluate, and with how its tokens were
    chosen. Raises TranscriptError."""
    saved = transcript.load(path)
    conversation.restart(saved.turns)
    if saved.sampling is not None:
        grammar = conversation.sampling.grammar
        conversation.sampling = replace(saved.sampling, grammar=grammar)
    screen.notice(f"loaded {questions(saved.turns)} from {path}")
    if saved.model != model:
        screen.notice(f"they were written with {saved.model!r:.80}; this is {model}")


def without_question(turns: list[Turn]) -> tuple[list[Turn], str | None]:
    """Turns up to the last answer, and the question after it that was never answered, if there is
    one."""
    if turns and turns[-1].role == "user":
        return turns[:-1], turns[-1].content
    return turns, None
