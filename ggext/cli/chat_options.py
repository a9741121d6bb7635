"""What `ggext chat` takes, in the groups in which --help shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggext.cli.groups import GroupedCommand, group
from ggext.cli.models import GGUF
from ggext.cli.numbers import SIZE, TOKENS, TOKENS_OR_AUTO
from ggext.cli.process import debug
from ggext.errors import UsageError
from ggext.runtime.memory.options import EVICTED, POLICIES

if TYPE_CHECKING:
    from ggext.chat.template import TemplateChoice

_THINK = ("show", "hide", "off")


class ChatCommand(GroupedCommand):
    """``-c`` continues the last chat; with a number it is a context, as in llama-cli."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``-c`` continues the last chat; ``-c 4096`` is a context of so many tokens."""
        parsed = list(args)
        for place, word in enumerate(args[:-1]):
            if word == "--":
                break
            if word == "-c" and args[place + 1][:1].isdigit():
                parsed[place] = "--ctx"
        return super().parse_args(ctx, parsed)


def only_one(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> str | None:
    """A question; several would leave all but one without an answer. Raises UsageError."""
    if len(given) > 1:
        raise UsageError(
            f"-p asks one question, not {len(given)}; a text before it goes in with -f"
        )
    return given[0] if given else None


question = group(
    "What is asked",
    click.option(
        "-m",
        "--model",
        type=GGUF,
        metavar="FILE",
        help="The model, in place of the first word.",
    ),
    click.option(
        "-p",
        "--prompt",
        metavar="TEXT",
        multiple=True,
        callback=only_one,
        help="Ask this one question and leave.",
    ),
    click.option(
        "-f",
        "--file",
        "documents",
        metavar="DOCUMENT",
        multiple=True,
        help=(
            "A text in front of the question, or of the first one that is typed: also PDF, docx, "
            "HTML and EPUB with the extra documents; - is the standard input. May be repeated."
        ),
    ),
    click.option("--system", metavar="TEXT", help="The system prompt."),
    click.option(
        "--template",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A chat template (jinja) instead of the file's own.",
    ),
    click.option(
        "--template-option",
        metavar="NAME=VALUE",
        multiple=True,
        help="What the chat template is asked for, such as reasoning_effort=high. May be repeated.",
    ),
)


def template_choice(file: Path | None, options: tuple[str, ...]) -> TemplateChoice:
    """A value is JSON where it reads as JSON (true, 3, null), else text. Raises UsageError."""
    from ggext.chat.documents import read_document
    from ggext.chat.template import TemplateChoice

    values: dict[str, Any] = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign:
            raise UsageError(f"--template-option {option:.80} is not NAME=VALUE")
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):
            values[name] = value
    text = None if file is None else read_document(file).text
    return TemplateChoice(text, values)


kept = group(
    "What is kept",
    click.option(
        "--session",
        metavar="NAME",
        help="Keep the chat and its KV cache under this name, or go on with it.",
    ),
    click.option(
        "-c",
        "--continue",
        "go_on",
        is_flag=True,
        help="Go on with the last chat; FILE can be left out.",
    ),
    click.option(
        "--load",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Go on with a chat that /save wrote.",
    ),
    click.option(
        "--autosave/--no-autosave",
        default=True,
        help="Keep the text of a chat without a name.  [default: yes]",
    ),
)
sampled = group(
    "The answer",
    click.option(
        "--think",
        type=click.Choice(_THINK),
        help="Reasoning: show it, fold it (hide), or ask for none.",
    ),
    click.option(
        "--temperature",
        "--temp",
        default=0.8,
        show_default=True,
        help="0 always takes the likeliest.",
    ),
    click.option(
        "--top-k",
        default=40,
        show_default=True,
        help="Of the K likeliest tokens only. 0 is off.",
    ),
    click.option(
        "--top-p",
        default=0.95,
        show_default=True,
        help="Of the likeliest that make up P. 1 is off.",
    ),
    click.option(
        "--min-p",
        default=0.05,
        show_default=True,
        help="At least P times the likeliest. 0 is off.",
    ),
    click.option(
        "--repeat-penalty",
        default=1.0,
        show_default=True,
        help="On the last 64 tokens. 1 is off.",
    ),
    click.option(
        "-s",
        "--seed",
        type=int,
        metavar="N",
        help="The same seed gives the same answer.",
    ),
    click.option(
        "-n", "--max-tokens", type=TOKENS, metavar="N", help="Longest answer."
    ),
    click.option(
        "--stop",
        metavar="TEXT",
        multiple=True,
        help="Ends the answer in front of it. May be repeated.",
    ),
    click.option(
        "--json-schema",
        metavar="SCHEMA",
        help="The answer is JSON of this schema (a file, or the text).",
    ),
    click.option(
        "--grammar",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The answer follows this GBNF.",
    ),
)


#: Also of ``ggext plan``.
swa = click.option(
    "--swa",
    type=click.Choice(["auto", "full", "small"]),
    default="auto",
    show_default=True,
    help=(
        "What layers with a sliding window keep: every token, the window, or whichever is "
        "less memory."
    ),
)
context = group(
    "The context",
    click.option(
        "--ctx",
        "--context",
        "--ctx-size",
        "ctx",
        metavar="N|auto",
        type=TOKENS_OR_AUTO,
        help=(
            "Context in tokens; auto: what the file is made for, or what fits into the "
            "memory.  [default: auto, but "
            "half of the free memory for a new chat without a text]"
        ),
    ),
    click.option(
        "--kv",
        default="f16",
        show_default=True,
        metavar="TYPE",
        help="Type of the KV cache: f16, q8_0 ...",
    ),
    swa,
    click.option(
        "--when-full",
        type=click.Choice(["stop", "auto", "turns", *POLICIES[1:]]),
        default="stop",
        show_default=True,
        help=(
            "What stays when the context is full; auto: chosen by the model, the free memory and "
            "what is asked."
        ),
    ),
    click.option(
        "--keep",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        metavar="SHARE",
        help=(
            "With --when-full compress: the memory that the text may take, as a share of what "
            "all of it would; 0.25 is a quarter.  [default: 1]"
        ),
    ),
    click.option(
        "--evicted",
        type=click.Choice(EVICTED),
        help=(
            "With --when-full compress or landmark: what becomes of tokens that leave the context. "
            "kept: a question brings back the passages that it asks for.  [default: compress "
            "dropped, landmark kept]"
        ),
    ),
    click.option(
        "--evicted-memory",
        type=SIZE,
        metavar="SIZE",
        help=(
            "What is kept of such tokens takes so much memory at most (2G, 500M); the oldest are "
            "forgotten, and it says so.  [default: a quarter of what is free]"
        ),
    ),
    click.option(
        "--dynamic-ntk",
        type=click.Choice(["rotate", "replay"]),
        help=(
            "Grow the RoPE base with the text, of a file without scaling: rotate what is "
            "cached, or read it again."
        ),
    ),
)
machine = group(
    "The machine",
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads on the CPU.  [default: the cores that are not busy]",
    ),
    click.option(
        "-b",
        "--batch-size",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens that are read at once.  [default: by the model, the threads and the context]",
    ),
    click.option(
        "-fa",
        "--flash-attn",
        type=click.Choice(["on", "off", "auto"]),
        default="auto",
        show_default=True,
        help="Flash attention: on a CPU faster where little is cached, slower where much is.",
    ),
    click.option(
        "--adapter",
        type=click.Path(),
        metavar="FILE",
        help="A LoRA adapter in GGUF, trained on this model.",
    ),
    click.option(
        "-ngl",
        "--gpu-layers",
        "gpu_layers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Layers on the GPU.  [default: all, if llama.cpp has a GPU]",
    ),
)
output = group(
    "The output",
    click.option(
        "--json",
        is_flag=True,
        help="Events on the standard output, one JSON object a line.",
    ),
    click.option(
        "--markdown/--no-markdown",
        default=True,
        help="Paint Markdown on a terminal.  [default: yes]",
    ),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=debug,
        help="Show the traceback of an error of ggext itself.",
    ),
)
