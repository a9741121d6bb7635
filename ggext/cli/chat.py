"""ggext chat: talk to a GGUF file, or ask it one question."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ggext.errors import UsageError
from ggext.runtime.memory.options import POLICIES, WhenFull

if TYPE_CHECKING:
    from ggext.chat.conversation import Conversation
    from ggext.chat.loop import Screen
    from ggext.runtime.regimes import DynamicNtk
    from ggext.runtime.sampling import Sampling

_STDIN = "-"


@dataclass(frozen=True)
class _Request:
    """The command line: what is asked, and how."""

    file: Path
    prompt: str | None
    documents: tuple[str, ...]
    system: str | None
    ctx: int | None
    max_tokens: int | None
    threads: int | None
    gpu_layers: int | None
    load: Path | None
    kv: str
    when_full: str
    dynamic_ntk: str | None
    sampling: Sampling


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", metavar="TEXT", help="Ask this one question and leave.")
@click.option(
    "-f",
    "--file",
    "documents",
    metavar="DOCUMENT",
    multiple=True,
    help="A text in front of the question; - is the standard input. May be repeated.",
)
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option(
    "--ctx",
    type=click.IntRange(min=1),
    metavar="N",
    help="Context in tokens.  [default: what the file is made for]",
)
@click.option("--temperature", default=0.8, show_default=True, help="0 always takes the likeliest.")
@click.option("--top-k", default=40, show_default=True, help="0 is off.")
@click.option("--top-p", default=0.95, show_default=True, help="1 is off.")
@click.option("--min-p", default=0.05, show_default=True, help="0 is off.")
@click.option("--repeat-penalty", default=1.0, show_default=True, help="1 is off.")
@click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads on the CPU.")
@click.option(
    "--gpu-layers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Layers on the GPU.  [default: all, if llama.cpp has a GPU]",
)
@click.option("--kv", default="f16", show_default=True, metavar="TYPE", help="Type of the KV cache: f16, q8_0 ...")
@click.option(
    "--when-full",
    type=click.Choice(["stop", "turns", *POLICIES[1:]]),
    default="stop",
    show_default=True,
    help="What stays when the context is full.",
)
@click.option(
    "--dynamic-ntk",
    type=click.Choice(["rotate", "replay"]),
    help="Grow the RoPE base with the text, of a file without scaling: rotate what is cached, or read it again.",
)
@click.option("--load", type=click.Path(path_type=Path), metavar="FILE", help="Go on with a saved chat.")
def chat(**options: Any) -> None:
    """Chat with the model in FILE (.gguf), or ask it one question.

    With -p, with -f, or with a question on the standard input, only the answer stands on the
    standard output. Otherwise type; /help lists the commands, Ctrl-C stops an answer, and
    Ctrl-D leaves.
    """
    from ggext.runtime.sampling import Sampling

    sampled = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
    sampling = Sampling(**{name: options.pop(name) for name in sampled})
    run(_Request(sampling=sampling, **options))


def run(request: _Request) -> None:
    """One question if the request has one, else the loop. Raises GgextError."""
    from ggext.terminal import PlainScreen, open_screen

    question = _question(request)
    screen = open_screen() if question is None else PlainScreen()
    with ExitStack() as stack:
        conversation = _open(request, screen, stack)
        if question is None:
            _converse(request, conversation, screen)
        else:
            _answer(conversation, screen, question)


def _question(request: _Request) -> str | None:
    """The one turn that the command line and the standard input make, None for a chat."""
    from ggext.chat.conversation import with_document

    question = request.prompt
    if request.documents.count(_STDIN) > 1:
        raise UsageError("-f - reads the standard input, which can be read once")
    documents = [_document(name) for name in request.documents]
    if question is None and _STDIN not in request.documents and not sys.stdin.isatty():
        question = _stdin().rstrip("\n")
        if not question and not documents:
            raise UsageError("there is no question: neither -p nor anything on the standard input")
    if question is None and not documents:
        return None
    question = question or ""
    for document in reversed(documents):
        question = with_document(document, question) if question else document
    return question


def _document(name: str) -> str:
    from ggext.chat.loop import read_document

    return _stdin() if name == _STDIN else read_document(Path(name))


def _stdin() -> str:
    from ggext.chat.conversation import check_text

    return check_text(sys.stdin.buffer.read(), "the standard input")


def _open(request: _Request, screen: Screen, stack: ExitStack) -> Conversation:
    from ggext.chat.conversation import Conversation
    from ggext.chat.loop import load
    from ggext.runtime import llama
    from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions

    llama.lib("ggext chat")
    interrupted: list[bool] = []
    with screen.interrupts(lambda: interrupted.append(True)):
        model = Model.open(request.file, request.gpu_layers, lambda _: not interrupted)
    stack.enter_context(model)
    turns = request.when_full == "turns"
    memory = MemoryOptions("stop" if turns else cast("WhenFull", request.when_full))
    dynamic = cast("DynamicNtk | None", request.dynamic_ntk)
    options = SessionOptions(request.ctx, request.threads, kv_type=request.kv, memory=memory, dynamic_ntk=dynamic)
    session = stack.enter_context(Session(model, options))
    conversation = Conversation(model, session, request.sampling, request.system, request.max_tokens, turns)
    for notice in session.notices:
        screen.notice(notice)
    if conversation.prompts.template is None:
        screen.notice("the file has no chat template: the model continues the text as it is")
    if request.load is not None:
        load(conversation, screen, request.load, request.file.name)
    return conversation


def _converse(request: _Request, conversation: Conversation, screen: Screen) -> None:
    from ggext.chat.loop import Chat

    trained = conversation.engine.trained
    available = conversation.engine.available
    screen.notice(
        f"{request.file.name}: {available:,} tokens of context, trained on {trained:,}; "
        "/help lists the commands, Ctrl-D leaves"
    )
    Chat(conversation, screen, request.file.name).run()


def _answer(conversation: Conversation, screen: Screen, question: str) -> None:
    from ggext.chat.loop import ask, notices, status

    outcome = ask(conversation, screen, question)
    for notice in notices(outcome):
        screen.notice(notice)
    if sys.stderr.isatty():
        screen.status(status(conversation, outcome))
    if outcome.finish == "cancelled":
        raise SystemExit(130)
