"""The chat: reads a line, does what it says, until the end. It draws nothing; a `Screen` does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ggext.chat import transcript
from ggext.chat.conversation import Conversation, Outcome, check_text, with_document
from ggext.errors import ContextFullError, GgextError, OutputError, UsageError

_FINISHES = {
    "length": "the answer was stopped at its longest length (--max-tokens)",
    "context": "the context is full: the answer stops here, nothing was dropped",
    "cancelled": "stopped",
}
_WITHDRAWN = "stopped before the answer: the turn was taken back"
_QUOTED = 40  # characters of a turn that left
_HOW_TO_LEAVE = "Ctrl-D or /exit leaves; Ctrl-C stops an answer"


class Screen(Protocol):
    """Where a chat is shown and typed."""

    def read(self) -> str | None:
        """The next input, None at its end. Raises KeyboardInterrupt for Ctrl-C."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""

    def error(self, text: str) -> None:
        """Something that went wrong."""

    def status(self, text: str) -> None:
        """The line after a turn."""

    def progress(self, done: int, total: int) -> None:
        """How much of a prompt is evaluated, in tokens."""

    def answer(self, text: str) -> None:
        """The next piece of the answer."""

    def end_answer(self) -> None:
        """The answer, or the attempt at one, is over."""

    def interrupts(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """A block in which Ctrl-C calls `cancel` and nothing else."""


class Chat:
    """The loop over one conversation. ``model`` is the model file's name, for saved chats."""

    def __init__(self, conversation: Conversation, screen: Screen, model: str) -> None:
        self.conversation = conversation
        self.screen = screen
        self.model = model
        self._documents: list[str] = []
        self._commands: dict[str, tuple[str, str, Callable[[str], bool]]] = {
            "/help": ("", "this list", self._help),
            "/file": (" FILE", "puts a document into the next turn", self._file),
            "/save": (" FILE", "saves the chat", self._save),
            "/load": (" FILE", "goes on with a saved chat", self._load),
            "/clear": ("", "starts over; the system prompt stays", self._clear),
            "/exit": ("", "leaves, as Ctrl-D does", lambda _: False),
        }

    def run(self) -> None:
        """Until Ctrl-D or /exit. An error in a turn is shown, and the chat goes on."""
        going_on = True
        while going_on:
            try:
                line = self.screen.read()
            except KeyboardInterrupt:
                self.screen.notice(_HOW_TO_LEAVE)
                continue
            going_on = line is not None and self._obey(line)

    def _obey(self, line: str) -> bool:
        if not line.strip():
            return True
        try:
            if line.startswith("/"):
                return self._command(line)
            self._turn(line)
        except GgextError as error:
            self.screen.error(str(error))
        return True

    def _command(self, line: str) -> bool:
        name, _, argument = line.strip().partition(" ")
        if name not in self._commands:
            known = ", ".join(self._commands)
            raise UsageError(f"there is no command {name}; the commands are {known}")
        usage, _, command = self._commands[name]
        argument = argument.strip()
        if bool(usage) != bool(argument):
            raise UsageError(f"the command is {name}{usage}")
        return command(argument)

    def _turn(self, question: str) -> None:
        for document in reversed(self._documents):
            question = with_document(document, question)
        try:
            outcome = ask(self.conversation, self.screen, question)
        except ContextFullError as error:
            self.screen.error(f"{error}. The turn was not sent, nothing was dropped")
            self._remind()
            return
        if outcome.kept:
            self._documents.clear()
        for notice in notices(outcome):
            self.screen.notice(notice)
        if outcome.finish == "context":
            self.screen.notice("/save FILE keeps the chat, /clear starts over")
        self._remind()
        self.screen.status(status(self.conversation, outcome))

    def _remind(self) -> None:
        if self._documents:
            self.screen.notice("the document still waits for the next turn; /clear takes it out")

    def _help(self, _: str) -> bool:
        for name, (usage, purpose, _command) in self._commands.items():
            self.screen.notice(f"{name + usage:<12} {purpose}")
        return True

    def _file(self, name: str) -> bool:
        document = read_document(_path(name))
        self._documents.append(document)
        tokens = self.conversation.count(document)
        self.screen.notice(
            f"{name}: {tokens:,} tokens go into the next turn; {self.conversation.engine.available:,} are available"
        )
        return True

    def _save(self, name: str) -> bool:
        path, turns = _path(name), self.conversation.turns
        if path.exists() and not _is_chat(path):
            raise OutputError(f"{name} exists and is not a saved chat; choose another name")
        transcript.save(path, self.model, self.conversation.sampling, turns)
        self.screen.notice(f"saved {len(turns)} turns to {name}")
        return True

    def _load(self, name: str) -> bool:
        load(self.conversation, self.screen, _path(name), self.model)
        return True

    def _clear(self, _: str) -> bool:
        self.conversation.clear()
        self._documents.clear()
        self.screen.notice("the chat starts over")
        return True


def ask(conversation: Conversation, screen: Screen, question: str) -> Outcome:
    """One turn, its answer streamed to the screen. Raises what `Conversation.ask` raises."""
    try:
        with screen.interrupts(conversation.engine.cancel):
            for piece in conversation.ask(question, screen.progress):
                screen.answer(piece)
    finally:
        screen.end_answer()
    assert conversation.outcome is not None
    return conversation.outcome


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
        words = " ".join(outcome.left[0].content.split())
        first = words if len(words) <= _QUOTED else f"{words[:_QUOTED]}…"
        found.append(
            f"the context was full: the {len(outcome.left)} oldest turns left it, from “{first}” on; the model does "
            "not see them any more, /save keeps them"
        )
    if outcome.dropped:
        found.append(f"the context was full: {outcome.dropped:,} of the oldest tokens left it")
    ending = _FINISHES.get(outcome.finish) if outcome.kept else _WITHDRAWN
    return [*found, ending] if ending else found


def status(conversation: Conversation, outcome: Outcome) -> str:
    """The line after a turn: the context's counts, and speeds in tokens a second."""
    engine, prefill = conversation.engine, outcome.prefill
    return (
        f"context: {engine.used:,} used, {engine.available:,} available, "
        f"trained on {engine.trained:,}; "
        f"read {prefill.evaluated:,} tokens{_speed(prefill.evaluated, prefill.seconds)}, "
        f"reused {prefill.reused:,}; "
        f"wrote {outcome.generated:,}{_speed(outcome.generated, outcome.seconds)}"
    )


def _speed(tokens: int, seconds: float) -> str:
    return f" at {tokens / seconds:,.0f}/s" if tokens and seconds > 0 else ""


def read_document(path: Path) -> str:
    """A text file. Raises UsageError when it cannot be read or is not UTF-8."""
    try:
        return check_text(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _is_chat(path: Path) -> bool:
    try:
        transcript.load(path)
    except transcript.TranscriptError:
        return False
    return True


def _path(name: str) -> Path:
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "\"'"
    return Path(name[1:-1] if quoted else name).expanduser()
