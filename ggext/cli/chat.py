"""ggext chat: talk to a GGUF file, or ask it one question."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from ggext.cli import chat_options
from ggext.errors import ContextFullError, GgextError, ModelError, UsageError
from ggext.runtime.memory.options import WhenFull

if TYPE_CHECKING:
    from ggext.chat.conversation import ChatOptions, Conversation
    from ggext.chat.fit import Room
    from ggext.chat.loop import Chat, Screen
    from ggext.chat.session import Keeper
    from ggext.footprint.cache import Swa
    from ggext.runtime.constraint import Grammar
    from ggext.runtime.engine import Session
    from ggext.runtime.regimes import DynamicNtk
    from ggext.runtime.sampling import Sampling

_STDIN = "-"
_STOPPED = 130  # the exit code of what Ctrl-C ended


@dataclass(frozen=True)
class _Request:
    """The command line: what is asked, and how."""

    file: Path
    prompt: str | None
    documents: tuple[str, ...]
    ctx: int | Literal["auto"] | None
    threads: int | None
    gpu_layers: int | None
    kv: str
    swa: str
    when_full: str
    dynamic_ntk: str | None
    load: Path | None
    session: str | None
    autosave: bool
    think: str | None
    markdown: bool
    json: bool
    sampling: Sampling
    options: ChatOptions


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@chat_options.question
@chat_options.kept
@chat_options.sampled
@chat_options.machine
def chat(**given: Any) -> None:
    """Chat with the model in FILE (.gguf), or ask it one question.

    With -p, or with a question on the standard input, only the answer stands on the standard
    output. Otherwise type; /help lists the commands, Ctrl-C stops an answer, and Ctrl-D leaves.
    -f TEXT without -p opens the chat with the text in front of the first question.

    Exit codes: 0 answered, 1 an error, 2 a mistake on the command line, 3 the context is full,
    130 stopped by Ctrl-C.
    """
    from ggext.chat.conversation import ChatOptions
    from ggext.gguf.shards import metadata_part
    from ggext.runtime.sampling import Sampling

    given["file"] = metadata_part(given["file"])
    sampled = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
    grammar = _grammar(given.pop("json_schema"), given.pop("grammar"))
    sampling = Sampling(**{name: given.pop(name) for name in sampled}, grammar=grammar)
    think = None if given["think"] is None else given["think"] != "off"
    turns = given["when_full"] == "turns"
    options = ChatOptions(
        given.pop("system"),
        given.pop("max_tokens"),
        given.pop("stop"),
        think,
        turns,
        chat_options.template_choice(given.pop("template"), given.pop("template_option")),
    )
    run(_Request(sampling=sampling, options=options, **given))


def run(request: _Request) -> None:
    """One question if the request has one, else the loop. Raises GgextError."""
    from ggext.folders import state_folder
    from ggext.screen.events import JsonScreen
    from ggext.screen.terminal import answer_screen, open_screen

    question, waiting = _asked(request)
    if request.json and question is None:
        raise UsageError(
            "--json answers one question: give it with -p, -f or on the standard input"
        )
    if request.session is not None and request.load is not None:
        raise UsageError("--session goes on with what it kept; /load in the chat reads another")
    one = JsonScreen if request.json else answer_screen
    screen = open_screen(state_folder() / "history") if question is None else one()
    screen.show_thoughts = request.json or request.think == "show"
    with ExitStack() as stack:
        try:
            chat = _open(request, question, screen, stack)
            if question is not None:
                _answer(chat, question)
            else:
                _converse(chat, waiting)
        except GgextError as error:
            if request.json:
                screen.error(str(error))
            raise


def _open(request: _Request, question: str | None, screen: Screen, stack: ExitStack) -> Chat:
    from ggext.chat.loop import Chat

    kept = request.documents or request.session is not None or request.load is not None
    conversation, session = _load(request, screen, stack, is_empty=question is None and not kept)
    screen.markdown = request.markdown and conversation.prompts.template is not None
    keeper = _keeper(request, question, session)
    if keeper is not None:
        stack.callback(_leave, request, screen, keeper)
        _resume(request, conversation, screen, keeper)
    return Chat(conversation, screen, _room(request, session), keeper)


def _grammar(schema: str | None, grammar: Path | None) -> Grammar | None:
    from ggext.chat.loop import read_document

    if schema is not None and grammar is not None:
        raise UsageError("--json-schema and --grammar both say what the answer is: give one")
    if schema is not None:
        from ggext.runtime.sampling import json_grammar

        return json_grammar(
            schema if schema.lstrip().startswith("{") else read_document(Path(schema))
        )
    return None if grammar is None else read_document(grammar)


def _asked(request: _Request) -> tuple[str | None, list[tuple[str, str]]]:
    """The one turn that the command line and the standard input make, None for a chat; and the
    documents that wait for the chat's first question, by their names.

    What is piped is a document where -p asks a question, and else the question. Documents alone are
    a turn, but on a terminal they wait.
    """
    from ggext.chat.conversation import with_documents

    question = request.prompt
    if request.documents.count(_STDIN) > 1:
        raise UsageError("-f - reads the standard input, which can be read once")
    documents = [_document(name) for name in request.documents]
    if question is None and sys.stdin.isatty() and sys.stdout.isatty() and not request.json:
        return None, list(zip(request.documents, documents, strict=True))
    if _STDIN not in request.documents and _is_piped(request.prompt is not None or bool(documents)):
        piped = _stdin()
        if question is None:
            question = piped.rstrip("\n")
        elif piped.strip():
            documents.append(piped)
        if not question and not documents:
            raise UsageError("there is no question: neither -p nor anything on the standard input")
    if question is None and not documents:
        return None, []
    *before, last = [*documents, question] if question else documents
    return with_documents(before, last), []


def _is_piped(optional: bool) -> bool:
    """Whether there is a text on the standard input. Where it is ``optional`` only a file or a pipe
    counts: another thing, such as what a service manager left open, may never end."""
    if not optional:
        return not sys.stdin.isatty()
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or a stream of a host program
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _document(name: str) -> str:
    from ggext.chat.loop import read_document

    return _stdin() if name == _STDIN else read_document(Path(name))


def _stdin() -> str:
    from ggext.chat.conversation import check_text

    return check_text(sys.stdin.buffer.read(), "the standard input")


def _load(
    request: _Request, screen: Screen, stack: ExitStack, *, is_empty: bool
) -> tuple[Conversation, Session]:
    """``is_empty``: nothing stands in the chat yet, and nothing that is long is known to come."""
    from ggext.chat.conversation import Conversation
    from ggext.chat.loop import load
    from ggext.runtime import llama
    from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions

    llama.lib("ggext chat")
    interrupted: list[bool] = []
    with (
        screen.interrupts(lambda: interrupted.append(True)),
        screen.waiting(f"loading {request.file.name}"),
    ):
        model = Model.open(request.file, request.gpu_layers, lambda _: not interrupted)
    stack.enter_context(model)
    memory = MemoryOptions(
        "stop" if request.options.drop_turns else cast("WhenFull", request.when_full)
    )
    dynamic = cast("DynamicNtk | None", request.dynamic_ntk)
    options = SessionOptions(
        None if request.ctx == "auto" else request.ctx,
        request.threads,
        kv_type=request.kv,
        memory=memory,
        dynamic_ntk=dynamic,
        swa=cast("Swa", request.swa),
        leaves_memory=request.ctx is None and is_empty,
    )
    with screen.waiting("making room for the context"):
        session = stack.enter_context(Session(model, options))
    conversation = Conversation(model, session, request.sampling, request.options)
    for notice in session.notices:
        screen.notice(notice)
    if conversation.prompts.template is None:
        screen.notice("the file has no chat template: the model continues the text as it is")
    if request.load is not None:
        load(conversation, screen, request.load, request.file.name)
    return conversation, session


def _room(request: _Request, session: Session) -> Room:
    from ggext.chat.fit import Room
    from ggext.footprint.planner import Choices
    from ggext.runtime import capacity

    model = session.model
    memory = capacity.room(
        model, Choices(request.kv, session.n_batch, swa=cast("Swa", request.swa))
    )
    needed, cache, free = (
        (memory.needed, memory.cache, memory.free) if memory else (None, None, None)
    )
    when_full = "stop" if request.options.drop_turns else request.when_full
    return Room(
        request.file.name,
        session.n_ctx,
        model.n_ctx_train,
        model.n_ctx_original,
        needed,
        cache,
        free,
        when_full,
    )


def _keeper(request: _Request, question: str | None, session: Session) -> Keeper | None:
    """A chat is kept under its name, or without one if it is typed; one question only under a
    name."""
    from ggext.chat.session import Keeper, autosaved, named

    if request.session is not None:
        return Keeper(named(request.session), request.file.name, session)
    if question is None and request.autosave:
        return Keeper(autosaved(), request.file.name, None)
    return None


def _resume(request: _Request, conversation: Conversation, screen: Screen, keeper: Keeper) -> None:
    from ggext.chat.loop import left_earlier

    if request.session is None:
        return
    if keeper.turns:
        by_turns = request.when_full in ("stop", "turns")  # the others are given every turn
        conversation.restart(keeper.turns, keeper.left if by_turns else 0)
        if request.options.system is not None:
            conversation.set_system(request.options.system)
    screen.notice(f"session {keeper.name}: {len(keeper.turns)} turns; {keeper.restore()}")
    for notice in left_earlier(conversation):
        screen.notice(notice)
    if keeper.damaged:
        lines = "a line" if keeper.damaged == 1 else f"{keeper.damaged} lines"
        screen.notice(
            f"{lines} of its journal was cut off or damaged, and is left out with its turns"
        )
    if keeper.model != request.file.name:
        screen.notice(f"it was begun with {keeper.model!r:.80}; this is {request.file.name}")


def _leave(request: _Request, screen: Screen, keeper: Keeper) -> None:
    """Keeps what there is; also when an error ends the chat, which goes on afterwards."""
    try:
        keeper.save_state()
    except GgextError as error:
        screen.error(f"the KV cache is not kept: {error}")
    except KeyboardInterrupt:
        screen.error("the KV cache is not kept: Ctrl-C stopped its writing")
    keeper.close()
    if request.session is None and keeper.kept:
        screen.notice(f"the chat is kept: ggext chat {request.file} --session {keeper.name}")


def _converse(chat: Chat, documents: list[tuple[str, str]]) -> None:
    from ggext.chat.commands import obey
    from ggext.chat.loop import without_question

    conversation, screen, room = chat.conversation, chat.screen, chat.room
    screen.notice(
        f"{room.model}: {room.allocated:,} tokens of context, trained on {room.trained:,}; "
        "/help lists the commands, Ctrl-D leaves"
    )
    conversation.turns, chat.unanswered = without_question(conversation.turns)
    if chat.unanswered is not None:
        screen.notice("its last question has no answer yet: /regen answers it")
    for name, document in documents:
        chat.attach(name, document)
    chat.run(obey)


def _answer(chat: Chat, question: str) -> None:
    from ggext.chat.loop import ask, notices, status, without_question

    conversation, screen = chat.conversation, chat.screen
    conversation.turns, _ = without_question(conversation.turns)
    try:
        outcome = ask(conversation, screen, question, chat.record)
    except ContextFullError as error:
        screen.notice(
            f"the text does not fit into the context of {chat.room.allocated:,} tokens; what helps:"
        )
        chat.explain(error.used + error.requested, 0)
        raise
    finally:
        chat.record()
    for notice in notices(outcome):
        screen.notice(notice)
    screen.status(status(conversation, outcome))
    code = {"cancelled": _STOPPED, "context": ContextFullError.exit_code}.get(outcome.finish, 0)
    if code:
        raise SystemExit(code)
    grammar, said = conversation.sampling.grammar, conversation.turns[-1].content
    if grammar is not None and outcome.finish != "eog":
        from ggext.runtime.constraint import is_complete

        if not is_complete(grammar, said):
            why = {"length": "--max-tokens", "stop": "--stop"}[outcome.finish]
            raise ModelError(f"the answer is not whole: {why} cut it before its grammar ended")
