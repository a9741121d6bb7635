"""The command line: a file a command, imported when it is called, so that ``--help`` starts at
once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from ggext._version import __version__
from ggext.cli.process import debug, failed, run

#: Command → its line in the list of commands. The module of the same name holds it.
_COMMANDS = {
    "convert": "Bake a RoPE scaling into a GGUF file.",
    "verify": "Prove in numbers that a file does what was asked.",
    "undo": "Take back what convert --in-place did.",
    "repair": "End what a crash interrupted in a file.",
    "inspect": "Show what a GGUF file says, without loading it.",
    "plan": "Say what a model and a context need, before loading.",
    "chat": "Chat with a model, or ask a document a question.",
    "chats": "List the chats that are kept; rename, delete, export them.",
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
        except click.exceptions.Exit:
            raise
        except BaseException as error:
            if isinstance(error, SystemExit):
                raise
            failed(error)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        def command() -> Any:
            return click.Group.main(
                self, args, prog_name, complete_var, standalone_mode=False, **extra
            )

        return run(command) if standalone_mode else command()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ggext")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=debug,
    help="Show the traceback of an error of ggext itself.",
)
def main() -> None:
    """Long contexts for local models: bake them into GGUF files, prove them in numbers, use them.

    \b
    ggext convert MODEL --yarn 4     a GGUF file that reaches four times the trained context
    ggext verify FILE                what the file says against what was asked
    ggext chat FILE                  a chat that tells how much of the context is used
    """
