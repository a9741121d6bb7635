"""The commands of a chat: /help and its like."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.arguments import check_count, parse_tokens
from ggext.chat import settings, transcript
from ggext.chat.context_report import context_report
from ggext.chat.documents import read_document
from ggext.chat.inserted import inserted_system
from ggext.chat.loop import load
from ggext.errors import OutputError, UsageError
from ggext.runtime.memory.options import POLICIES

if TYPE_CHECKING:
    from ggext.chat.loop import Chat

_COMPRESSED = 0.5
#: What stays in a full context, as the user names it.
WHEN_FULL = ("stop", "turns", *POLICIES[1:])


@dataclass(frozen=True)
class Command:
    """A line that begins with /."""

    # how the help names it, empty where there is none, in brackets where it may be left out
    argument: str
    purpose: str
    # gets the chat and the argument; False leaves the chat
    run: Callable[[Chat, str], bool | None]


def obey(chat: Chat, line: str) -> bool:
    """Does what a line that starts with / says; False: the chat is over. Raises GgextError."""
    name, _, argument = line.strip().partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        raise UsageError(
            f"there is no command {name}{_meant(name)}; /help lists them; a text that begins with "
            "/ is sent with a space in front"
        )
    command = COMMANDS[name]
    argument = argument.strip()
    optional = command.argument.startswith("[")
    if not optional and bool(command.argument) != bool(argument):
        raise UsageError(f"the command is {f'{name} {command.argument}'.strip()}")
    return command.run(chat, argument) is not False


def _meant(name: str) -> str:
    alike = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], 1, 0.7)
    if alike:
        return f"; did you mean {alike[0]}?"
    setting = settings.closest(name.removeprefix("/"))
    return f"; did you mean /set {setting}?" if setting else ""


def _help(chat: Chat, _: str) -> None:
    for name, command in COMMANDS.items():
        chat.screen.notice(f"{f'{name} {command.argument}':<22} {command.purpose}")
    block = '"""'
    chat.screen.notice(
        f"{block:<22} begins and ends a text of several lines; Alt-Enter too"
    )


def _file(chat: Chat, name: str) -> None:
    path = _path(name)
    with chat.screen.waiting(f"reading {path.name}"):
        document = read_document(path)
    chat.attach(document)


def _context(chat: Chat, _: str) -> None:
    for line in context_report(chat):
        chat.screen.notice(line)


def _save(chat: Chat, name: str) -> None:
    path = _path(name)
    turns = chat.conversation.turns
    if path.exists() and not transcript.is_one(path):
        raise OutputError(f"{name} exists and is not a saved chat; choose another name")
    transcript.save(path, chat.room.model, chat.conversation.sampling, turns)
    chat.screen.notice(f"saved {transcript.questions(turns)} to {path}")


def _load(chat: Chat, name: str) -> None:
    load(chat.conversation, chat.screen, _path(name), chat.room.model)
    chat.unanswered = None


def _export(chat: Chat, name: str) -> None:
    path = _path(name)
    turns = chat.conversation.turns
    if path.exists():
        raise OutputError(f"{name} exists; choose another name")
    transcript.export(path, turns)
    chat.screen.notice(f"wrote {transcript.questions(turns)} to {path} as Markdown")


def _regen(chat: Chat, _: str) -> None:
    """A question that has no answer yet is sent as it would have been; else the last one again,
    without the documents that wait."""
    conversation = chat.conversation
    before = list(chat.conversation.turns)
    if chat.unanswered is not None:
        chat.turn(chat.unanswered)
        return
    taken = conversation.undo()
    if not taken:
        raise UsageError("there is no answer to make again; ask something first")
    _vary(chat)
    documents = chat.documents
    chat.documents = []
    count = len(conversation.turns)
    try:
        chat.turn(taken[0].content)
    finally:
        chat.documents = documents
        chat.unanswered = None
        if len(conversation.turns) == count:  # no new answer: the old one stays
            conversation.turns = before


def _vary(chat: Chat) -> None:
    conversation = chat.conversation
    sampling = chat.conversation.sampling
    if sampling.seed is not None:  # the same seed would give the same answer
        conversation.sampling = replace(sampling, seed=sampling.seed + 1)
    elif sampling.temperature == 0 and chat.room.when_full == "stop":
        chat.screen.notice(
            "at temperature 0 the answer will most likely be the same; /set temperature 0.8 varies "
            "it"
        )


def _undo(chat: Chat, _: str) -> None:
    taken = chat.conversation.undo()
    if not taken:
        raise UsageError("there is nothing to take back")
    words = " ".join(taken[0].content.split())
    chat.screen.notice(f"taken back: {words if len(words) <= 60 else words[:59] + '…'}")


def _clear(chat: Chat, _: str) -> None:
    chat.conversation.clear()
    chat.documents.clear()
    chat.unanswered = None
    chat.screen.notice("the chat starts over")


def _system(chat: Chat, text: str) -> None:
    conversation = chat.conversation
    if text:
        conversation.set_system(text)
        chat.screen.notice(
            "the system prompt is another now; the next turn reads the chat again after it"
        )
    elif conversation.system is not None:
        chat.screen.notice(conversation.system)
    elif inserted := inserted_system(conversation.prompts.template):
        chat.screen.notice(
            f"the template inserts its own system prompt: {inserted}\n/system TEXT replaces it"
        )
    else:
        chat.screen.notice("there is no system prompt; /system TEXT sets one")


def _when_full(chat: Chat, policy: str) -> None:
    conversation = chat.conversation
    now = "turns" if conversation.options.drop_turns else chat.room.when_full
    if not policy:
        chat.screen.notice(
            f"when the context is full: {now}; the choices are {', '.join(WHEN_FULL)}"
        )
        return
    if policy not in WHEN_FULL:
        alike = difflib.get_close_matches(policy, WHEN_FULL, 1)
        suggestion = f"; did you mean {alike[0]}?" if alike else ""
        raise UsageError(
            f"when-full is {policy}, but must be one of {', '.join(WHEN_FULL)}{suggestion}"
        )
    engines = "stop" if policy == "turns" else policy
    if engines != chat.room.when_full:
        _open_again(chat, chat.room.allocated, engines)
    conversation.options = replace(conversation.options, drop_turns=policy == "turns")
    chat.screen.notice(f"when the context is full: {policy}")


def _compress(chat: Chat, share: str) -> None:
    engine = chat.conversation.engine
    if chat.room.when_full != "compress":
        raise UsageError(
            f"the context of a chat with /when-full {chat.room.when_full} cannot be compressed: "
            "/when-full compress changes that"
        )
    try:
        engine.compress(float(share or _COMPRESSED))
    except ValueError:
        raise UsageError(
            f"/compress takes a share such as 0.5, not {share!r:.40}"
        ) from None
    chat.screen.notice(
        f"what stands out stays: {engine.ever_dropped:,} tokens left the context"
    )


def _ctx(chat: Chat, tokens: str) -> None:
    if not tokens:
        chat.screen.notice(
            f"the context is {chat.room.allocated:,} tokens; /ctx N or /ctx auto changes it"
        )
        return
    try:
        count = None if tokens == "auto" else parse_tokens(tokens)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if count is not None:
        check_count("/ctx", count)
    _open_again(chat, count, chat.room.when_full)
    chat.screen.notice(f"the context is {chat.room.allocated:,} tokens")


def _open_again(chat: Chat, tokens: int | None, policy: str) -> None:
    """Another context in place of this one. Raises GgextError; then the old one is back."""
    if chat.reopen is None:
        raise UsageError(
            "this chat cannot change its context; open it again with --ctx N"
        )
    with chat.screen.waiting("making room for the context"):
        chat.room, notices = chat.reopen(tokens, policy)
    for line in notices:
        chat.screen.notice(line)


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.removeprefix("parameter ").partition(" ")
    if value.strip():
        notice = settings.change(chat.conversation, chat.screen, name, value.strip())
        chat.screen.notice(notice)
    elif name:
        raise UsageError("the command is /set NAME VALUE; /set alone shows the names")
    else:
        for known, now in settings.current(chat.conversation, chat.screen).items():
            chat.screen.notice(f"{known:<16} {now}")


def _path(name: str) -> Path:
    """A path as it is typed, quoted, or dragged into the terminal: with a backslash before what a
    shell would split at."""
    plain = Path(name).expanduser()
    if plain.exists():
        return plain
    try:
        words = shlex.split(name)
    except ValueError:  # a quote that is part of the name
        return plain
    return Path(words[0]).expanduser() if len(words) == 1 else plain


COMMANDS: dict[str, Command] = {
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
    "/compress": Command(
        "[SHARE]",
        "leaves this share of the context, what stands out most [0.5]",
        _compress,
    ),
    "/ctx": Command(
        "[N]", "shows the size of the context in tokens, or changes it", _ctx
    ),
    "/save": Command("FILE", "saves the chat", _save),
    "/load": Command("FILE", "continues a saved chat", _load),
    "/export": Command("FILE", "writes the chat as Markdown", _export),
    "/quit": Command("", "leaves, as Ctrl-D does", lambda _chat, _argument: False),
}
ALIASES = {"/exit": "/quit", "/bye": "/quit", "/?": "/help"}
