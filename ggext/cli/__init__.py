"""The command line: a file a command, imported when it is called, so that ``--help`` starts at
once."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from ggext._version import __version__
from ggext.errors import GgextError

#: Command → its line in the list of commands. The module of the same name holds it.
_COMMANDS = {
    "convert": "Bake a RoPE scaling into a GGUF file.",
    "verify": "Prove in numbers that a file does what was asked.",
    "undo": "Take back what convert --in-place did.",
    "repair": "End what a crash interrupted in a file.",
    "inspect": "Show what a GGUF file says, without loading it.",
    "plan": "Say what a model and a context need, before loading.",
    "chat": "Chat with a model, or ask a document a question.",
    "doctor": "Say what is installed, what is missing, and whether it works.",
    "demo": "Bake, prove and measure the embedded model.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"ggext.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):  # from the table, without importing the commands
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GgextError as error:
            _fail(str(error), error.exit_code)
        except click.UsageError as error:  # click would print three lines
            command = error.ctx.command_path if error.ctx is not None else "ggext"
            message = error.format_message().rstrip(".")
            _fail(f"{message}; see {command} --help", 2)
        except MemoryError:
            _fail("out of memory; choose a smaller model or context", 1)
        except BrokenPipeError:
            # the reader of our output has gone; keep Python from complaining again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    click.echo(f"ggext: {line}", err=True)
    sys.exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ggext")
def main() -> None:
    """Long contexts for local models: bake them into GGUF files, prove them in numbers, use them.

    \b
    ggext convert MODEL --yarn 4     a GGUF file that reaches four times the trained context
    ggext verify FILE                what the file says against what was asked
    ggext chat FILE                  a chat that tells how much of the context is used
    """
