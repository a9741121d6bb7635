"""ggext chat: talk to a GGUF file, or ask it one question."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ggext.cli import chat_options
from ggext.cli.chat_input import ChatInput, parse_input
from ggext.cli.chat_open import open_chat, require_extras
from ggext.cli.chat_request import Request, new_request
from ggext.cli.process import STOPPED, is_debugged
from ggext.errors import (
    ContextFullError,
    GgextError,
    ModelError,
    OutputError,
    UsageError,
)

if TYPE_CHECKING:
    from ggext.chat.loop import Chat
    from ggext.chat.screens import Screen
    from ggext.runtime.constraint import Grammar


@click.command(
    cls=chat_options.ChatCommand,
    examples=[
        ('ggext chat model.gguf -f book.txt "Who did it?"', "one question to a book"),
        ("ggext chat -c", "continues the last chat"),
    ],
)
@click.argument("words", nargs=-1, metavar="FILE [QUESTION]")
@chat_options.question
@chat_options.kept
@chat_options.sampled
@chat_options.context
@chat_options.machine
@chat_options.output
def chat(**given: Any) -> None:
    """Chat with the model in FILE (.gguf), or ask it one question.

    With a question, with -p, or with one on the standard input, only the answer stands on the
    standard output. Otherwise type; /help lists the commands, Ctrl-C stops an answer, and Ctrl-D
    leaves. -f TEXT without a question opens the chat with the text in front of the first one.

    Exit codes: 0 answered, 1 an error, 2 a mistake on the command line, 3 the context is full,
    130 stopped by Ctrl-C.
    """
    context = click.get_current_context()
    explicit = [
        name
        for name in given
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    grammar = _grammar(given.pop("json_schema"), given.pop("grammar"))
    run(new_request(given, explicit, grammar))


def run(request: Request) -> None:
    """One question if the request has one, else the loop. Raises GgextError."""
    question = parse_input(request.prompt, request.documents, one_answer=request.json)
    if request.json and question.is_chat:
        raise UsageError(
            "--json answers one question: give it with -p, -f or on the standard input"
        )
    if request.session is not None and request.load is not None:
        raise UsageError(
            "--session continues what it kept; /load in the chat reads another"
        )
    require_extras(typed=question.is_chat)
    screen = _screen(request, question)
    with ExitStack() as stack:
        try:
            chat = open_chat(request, screen, stack, question, debug=is_debugged())
            (_converse if question.is_chat else _answer)(chat, question)
        except GgextError as error:
            if not request.json:
                raise
            screen.error(str(error))
            raise SystemExit(error.exit_code) from error


def _screen(request: Request, question: ChatInput) -> Screen:
    from ggext.folders import state_folder
    from ggext.screen.events import JsonScreen
    from ggext.screen.terminal import answer_screen, open_screen

    screen: Screen
    if request.json:
        screen = JsonScreen()
    elif question.is_chat:
        history: Path | None = None
        try:
            history = state_folder() / "history"
        except OutputError:  # without a home what was typed is remembered until the end
            history = None
        screen = open_screen(history)
    else:
        screen = answer_screen()
    screen.show_thoughts = request.json or request.think == "show"
    return screen


def _grammar(schema: str | None, grammar: Path | None) -> Grammar | None:
    from ggext.chat.documents import read_document

    if schema is not None and grammar is not None:
        raise UsageError(
            "--json-schema and --grammar both say what the answer is: give one"
        )
    if schema is not None:
        from ggext.runtime.sampling import json_grammar

        if not schema.lstrip().startswith("{"):
            schema = read_document(Path(schema)).text
        return json_grammar(schema)
    return None if grammar is None else read_document(grammar).text


def _converse(chat: Chat, question: ChatInput) -> None:
    from ggext.chat.commands import obey
    from ggext.chat.loop import without_question

    conversation = chat.conversation
    screen = chat.screen
    room = chat.room
    screen.notice(
        f"{room.model}: {room.allocated:,} tokens of context, trained on {room.trained:,}; "
        "/help lists the commands, Ctrl-D leaves"
    )
    conversation.turns, chat.unanswered = without_question(conversation.turns)
    if chat.unanswered is not None:
        screen.notice("its last question has no answer yet: /regen answers it")
    for document in question.documents:
        chat.attach(document)
    chat.run(obey)


def _answer(chat: Chat, question: ChatInput) -> None:
    from ggext.chat.loop import ask, without_question
    from ggext.chat.notices import notices, status

    conversation = chat.conversation
    screen = chat.screen
    conversation.turns, _ = without_question(conversation.turns)
    for document in question.documents:
        if not document.text.strip():
            screen.notice(f"{document.name} is empty: there is nothing to read")
        elif document.made_from:
            tokens = conversation.prompts.count(document.text)
            screen.notice(f"{document.name}: {document.made_from}, {tokens:,} tokens")
    try:
        outcome = ask(conversation, screen, question.turn, chat.record)
    except ContextFullError as error:
        screen.notice("the text does not fit into the context; what helps:")
        chat.explain(error.used + error.requested, 0, running=False)
        raise
    finally:
        chat.record()
    for notice in notices(outcome):
        screen.notice(notice)
    screen.status(status(conversation, outcome))
    code = {"cancelled": STOPPED, "context": ContextFullError.exit_code}.get(
        outcome.finish, 0
    )
    if code:
        raise SystemExit(code)
    grammar = conversation.sampling.grammar
    answer = conversation.turns[-1].content
    if grammar is not None and outcome.finish != "eog":
        from ggext.runtime.constraint import is_complete

        if not is_complete(grammar, answer):
            why = {"length": "--max-tokens", "stop": "--stop"}[outcome.finish]
            raise ModelError(
                f"the answer is not whole: {why} cut it before its grammar ended"
            )
