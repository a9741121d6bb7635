"""The commands of a chat: /help and its like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.chat import settings, transcript
from ggext.chat.loop import load, read_document
from ggext.errors import OutputError, UsageError
from ggext.runtime.memory.options import POLICIES

if TYPE_CHECKING:
    from ggext.chat.loop import Chat


@dataclass(frozen=True)
class Command:
    """``argument``: how the help names it, empty where there is none, in brackets where it may be
    left out.

    ``run`` gets the chat and the argument; False leaves the chat.
    """

    argument: str
    purpose: str
    run: Callable[[Chat, str], bool | None]


def obey(chat: Chat, line: str) -> bool:
    """Does what a line that starts with / says; False: the chat is over. Raises GgextError."""
    name, _, argument = line.strip().partition(" ")
    name = _ALIASES.get(name, name)
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name}; the commands are {', '.join(COMMANDS)}")
    command, argument = COMMANDS[name], argument.strip()
    optional = command.argument.startswith("[")
    if not optional and bool(command.argument) != bool(argument):
        raise UsageError(f"the command is {f'{name} {command.argument}'.strip()}")
    return command.run(chat, argument) is not False


def _help(chat: Chat, _: str) -> None:
    for name, command in COMMANDS.items():
        chat.screen.notice(f"{f'{name} {command.argument}':<20} {command.purpose}")


def _file(chat: Chat, name: str) -> None:
    chat.attach(name, read_document(_path(name)))


def _context(chat: Chat, _: str) -> None:
    conversation, room = chat.conversation, chat.room
    engine, count = conversation.engine, conversation.prompts.count
    chat.screen.notice(
        f"{engine.used:,} tokens are in the context, {engine.available:,} more fit; the file is "
        "made for "
        f"{room.made_for:,}, the model was trained on {room.trained:,}"
    )
    shares = {
        "system prompt": conversation.turns[: conversation.system is not None],
        "questions": [turn for turn in conversation.turns if turn.role == "user"],
        "answers": [turn for turn in conversation.turns if turn.role == "assistant"],
    }
    parts = [
        f"{name} {sum(count(turn.content) for turn in turns):,}"
        for name, turns in shares.items()
        if turns
    ]
    if parts:
        chat.screen.notice(f"tokens of text: {', '.join(parts)}")
    if room.cache is not None:
        allocated = room.cache(room.allocated)
        each = allocated / room.allocated
        chat.screen.notice(
            f"KV cache: {engine.used * each / 2**20:,.1f} of {allocated / 2**20:,.1f} MiB, "
            f"{each:,.0f} bytes a token"
        )


def _save(chat: Chat, name: str) -> None:
    path, turns = _path(name), chat.conversation.turns
    if path.exists() and not transcript.is_one(path):
        raise OutputError(f"{name} exists and is not a saved chat; choose another name")
    transcript.save(path, chat.room.model, chat.conversation.sampling, turns)
    chat.screen.notice(f"saved {len(turns)} turns to {name}")


def _load(chat: Chat, name: str) -> None:
    load(chat.conversation, chat.screen, _path(name), chat.room.model)


def _export(chat: Chat, name: str) -> None:
    path, turns = _path(name), chat.conversation.turns
    if path.exists():
        raise OutputError(f"{name} exists; choose another name")
    transcript.export(path, turns)
    chat.screen.notice(f"wrote {len(turns)} turns to {name} as Markdown")


def _regen(chat: Chat, _: str) -> None:
    conversation, before = chat.conversation, list(chat.conversation.turns)
    if chat.unanswered is not None:
        question = chat.unanswered
    elif taken := conversation.undo():
        question = taken[0].content
    else:
        raise UsageError("there is no answer to make again; ask something first")
    sampling, documents = conversation.sampling, chat.documents
    if sampling.seed is not None:  # the same seed would give the same answer
        conversation.sampling = replace(sampling, seed=sampling.seed + 1)
    elif sampling.temperature == 0 and chat.unanswered is None:
        chat.screen.notice(
            "at temperature 0 the answer will be the same; /set temperature 0.8 varies it"
        )
    chat.documents = []
    count = len(conversation.turns)
    try:
        chat.turn(question)
    finally:
        chat.documents = documents
        if len(conversation.turns) == count:  # no new answer: the old one stays
            conversation.turns = before


def _undo(chat: Chat, _: str) -> None:
    taken = chat.conversation.undo()
    if not taken:
        raise UsageError("there is nothing to take back")
    words = " ".join(taken[0].content.split())
    chat.screen.notice(f"taken back: {words if len(words) <= 60 else words[:59] + '…'}")


def _clear(chat: Chat, _: str) -> None:
    chat.conversation.clear()
    chat.documents.clear()
    chat.screen.notice("the chat starts over")


def _system(chat: Chat, text: str) -> None:
    if text:
        chat.conversation.set_system(text)
        chat.screen.notice(
            "the system prompt is another now; the next turn reads the chat again behind it"
        )
    else:
        chat.screen.notice(
            chat.conversation.system or "there is no system prompt; /system TEXT sets one"
        )


def _when_full(chat: Chat, policy: str) -> None:
    conversation, engines = chat.conversation, chat.room.when_full
    if not policy:
        now = "turns" if conversation.options.drop_turns else engines
        chat.screen.notice(
            f"when the context is full: {now}; the choices are {', '.join(('turns', *POLICIES))}"
        )
    elif policy in ("stop", "turns") and engines == "stop":
        conversation.options = replace(conversation.options, drop_turns=policy == "turns")
        chat.screen.notice(f"when the context is full: {policy}")
    elif policy in ("turns", *POLICIES):
        raise UsageError(
            f"{policy} needs a context of another kind: start with --when-full {policy}; a chat "
            "with --session goes on"
        )
    else:
        raise UsageError(
            f"when-full is {policy}, but must be one of {', '.join(('turns', *POLICIES))}"
        )


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if value.strip():
        settings.change(chat.conversation, chat.screen, name, value.strip())
    elif name:
        raise UsageError("the command is /set NAME VALUE; /set alone shows the names")
    else:
        for known, now in settings.current(chat.conversation, chat.screen).items():
            chat.screen.notice(f"{known:<16} {now}")


def _path(name: str) -> Path:
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "\"'"
    return Path(name[1:-1] if quoted else name).expanduser()


COMMANDS = {
    "/help": Command("", "this list", _help),
    "/file": Command("FILE", "puts a document into the next turn", _file),
    "/context": Command("", "what the context holds, and what it could", _context),
    "/regen": Command("", "answers the last question again", _regen),
    "/undo": Command("", "takes the last question and its answer back", _undo),
    "/clear": Command("", "starts over; the system prompt stays", _clear),
    "/system": Command("[TEXT]", "shows the system prompt, or sets another", _system),
    "/set": Command("[NAME VALUE]", "shows the settings, or changes one", _set),
    "/when-full": Command(
        "[POLICY]", "shows what stays in a full context, or changes it", _when_full
    ),
    "/save": Command("FILE", "saves the chat", _save),
    "/load": Command("FILE", "goes on with a saved chat", _load),
    "/export": Command("FILE", "writes the chat as Markdown", _export),
    "/quit": Command("", "leaves, as Ctrl-D does", lambda _chat, _argument: False),
}
_ALIASES = {"/exit": "/quit"}
