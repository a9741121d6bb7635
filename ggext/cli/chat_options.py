"""What `ggext chat` can be told, in the groups in which --help shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from ggext.cli.numbers import TOKENS, TOKENS_OR_AUTO
from ggext.cli.process import debug
from ggext.runtime.memory.options import POLICIES

_THINK = ("show", "hide", "off")
_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def grouped(*options: _Decorator) -> _Decorator:
    """Decorators as one, in the order in which --help shows them."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class ChatCommand(click.Command):
    """Options in groups, two examples, and ``-c`` with a number as llama-cli has it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``-c`` goes on with the last chat; ``-c 4096`` is a context of so many tokens."""
        parsed = list(args)
        for place, word in enumerate(args[:-1]):
            if word == "--":
                break
            if word == "-c" and args[place + 1][:1].isdigit():
                parsed[place] = "--ctx"
        return super().parse_args(ctx, parsed)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            parameter.name: parameter.get_help_record(ctx)
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
        }
        named = {name for names in GROUPS.values() for name in names}
        rest = [name for name in records if name not in named]
        for title, names in (*GROUPS.items(), ("Other options", rest)):
            lines = [record for name in names if (record := records.get(name)) is not None]
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            formatter.write_dl(
                [
                    ('ggext chat model.gguf -f book.txt "Who did it?"', "one question to a book"),
                    ("ggext chat -c", "goes on with the last chat"),
                ]
            )


#: The options of --help under their titles, by the names of their parameters.
GROUPS = {
    "What is asked": ("model", "prompt", "documents", "system"),
    "What is kept": ("session", "go_on", "load", "autosave"),
    "The answer": (
        *("max_tokens", "stop", "json_schema", "grammar", "think"),
        *("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed"),
    ),
    "The context": ("ctx", "when_full", "kv", "swa", "dynamic_ntk"),
    "The machine": ("threads", "gpu_layers"),
    "The output": ("json", "markdown"),
}


question = grouped(
    click.option(
        "-m",
        "--model",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The model, in place of the first word.",
    ),
    click.option("-p", "--prompt", metavar="TEXT", help="Ask this one question and leave."),
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
        "--think",
        type=click.Choice(_THINK),
        help="Reasoning: show it, fold it (hide), or ask for none.",
    ),
    click.option(
        "--json", is_flag=True, help="Events on the standard output, one JSON object a line."
    ),
    click.option(
        "--markdown/--no-markdown",
        default=True,
        help="Paint Markdown on a terminal.  [default: yes]",
    ),
)
kept = grouped(
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
sampled = grouped(
    click.option(
        "--temperature",
        "--temp",
        default=0.8,
        show_default=True,
        help="0 always takes the likeliest.",
    ),
    click.option(
        "--top-k", default=40, show_default=True, help="Of the K likeliest tokens only. 0 is off."
    ),
    click.option(
        "--top-p",
        default=0.95,
        show_default=True,
        help="Of the likeliest that make up P. 1 is off.",
    ),
    click.option(
        "--min-p", default=0.05, show_default=True, help="At least P times the likeliest. 0 is off."
    ),
    click.option(
        "--repeat-penalty", default=1.0, show_default=True, help="On the last 64 tokens. 1 is off."
    ),
    click.option(
        "-s", "--seed", type=int, metavar="N", help="The same seed gives the same answer."
    ),
    click.option("-n", "--max-tokens", type=TOKENS, metavar="N", help="Longest answer."),
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
machine = grouped(
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
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads on the CPU.  [default: the cores that are not busy]",
    ),
    click.option(
        "-ngl",
        "--gpu-layers",
        "gpu_layers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Layers on the GPU.  [default: all, if llama.cpp has a GPU]",
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
        type=click.Choice(["stop", "turns", *POLICIES[1:]]),
        default="stop",
        show_default=True,
        help="What stays when the context is full.",
    ),
    click.option(
        "--dynamic-ntk",
        type=click.Choice(["rotate", "replay"]),
        help=(
            "Grow the RoPE base with the text, of a file without scaling: rotate what is "
            "cached, or read it again."
        ),
    ),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=debug,
        help="Show the traceback of an error of ggext itself.",
    ),
)
