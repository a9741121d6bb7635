"""What is typed: line editing, a history that stays, completion of commands and paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.errors import MissingExtraError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History

_TAKE_A_FILE = ("/file ", "/save ", "/load ", "/export ")


def new_keyboard(history: Path | None) -> PromptSession[str]:
    """A prompt on the terminal. Raises MissingExtraError without prompt_toolkit."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.styles import Style
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "prompt_toolkit", "run", "ggext chat on a terminal"
        ) from error
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=_history(history),
        key_bindings=keys,
        completer=new_completer(),
        # Only commands offer themselves; a question is left alone.
        complete_while_typing=Condition(
            lambda: session.default_buffer.text.startswith("/")
        ),
        prompt_continuation="  ",
        enable_suspend=True,
        reserve_space_for_menu=6,
        style=Style([("note", "dim")]),
    )
    return session


def new_completer() -> Completer:
    """Completes commands at the beginning, then what they take: a path, or a setting's name."""
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    from ggext.chat.commands import COMMANDS, WHEN_FULL
    from ggext.chat.settings import NAMES

    paths = PathCompleter(expanduser=True)
    words = {"/set ": NAMES, "/when-full ": WHEN_FULL}

    class CommandCompleter(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            text = document.text_before_cursor
            command = next(
                (name for name in _TAKE_A_FILE if text.startswith(name)), None
            )
            if command is not None:
                yield from paths.get_completions(
                    Document(text[len(command) :]), complete_event
                )
            elif text.startswith(tuple(words)):
                taker = next(name for name in words if text.startswith(name))
                partial = text.removeprefix(taker)
                yield from (
                    Completion(word, -len(partial))
                    for word in words[taker]
                    if word.startswith(partial)
                )
            elif text.startswith("/"):
                for name, entry in COMMANDS.items():
                    if name.startswith(text):
                        yield Completion(name, -len(text), display_meta=entry.purpose)

    return CommandCompleter()


def _history(path: Path | None) -> History:
    """On disk for the user alone; in memory where the disk refuses."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
