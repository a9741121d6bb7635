"""The command line: a file a command, imported when it is called, so that ``--help`` starts at
once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from ggext._version import __version__
from ggext.cli.process import debug, failed, print_error, run
from ggext.cli.suggest import unknown_command, unknown_option

#: Command → its line in the list of commands. The module of the same name holds it, as a function
#: of that name or as ``command``.
_COMMANDS = {
    "convert": "Bake a RoPE scaling into a GGUF file.",
    "verify": "Prove in numbers that a file does what was asked.",
    "undo": "Take back what convert --in-place did.",
    "repair": "End what a crash interrupted in a file.",
    "eval": "Measure how far a file really reaches, with error bars.",
    "search": "Look for a table that is better than YaRN's at its defaults.",
    "tune": "Fine-tune a model at a longer context, and evaluate it.",
    "rope": "Say a scaling in the words of another program.",
    "export": "Turn a GGUF file back into a Hugging Face checkpoint.",
    "inspect": "Show what became of each frequency of a file.",
    "show": "Show what a model is: template, licence, context, RoPE.",
    "list": "List the models that are on this machine.",
    "pull": "Fetch a model from the Hugging Face hub.",
    "plan": "Say what a model and a context need, before loading.",
    "chat": "Chat with a model, or ask a document a question.",
    "chats": "List the chats that are kept; rename, delete, export them.",
    "doctor": "Say what is installed, what is missing, and whether it works.",
    "demo": "Bake, prove and measure the embedded model.",
}
#: Command → its module, where a module of that name would hide the builtin here.
_MODULES = {"list": "listing"}
_OVERVIEW = """\
ggext makes local models read longer texts. It does three things:

  bake   ggext convert model.gguf --yarn 4   a file that reads 4 times as far
  prove  ggext verify model-yarn4.gguf       whether llama.cpp does what it says
  run    ggext chat model-yarn4.gguf         a chat, with -f book.txt about a book

ggext list shows the models that are here, ggext pull OWNER/NAME fetches one,
ggext --help lists all commands.
"""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in _COMMANDS:
            return None
        module = import_module(f"ggext.cli.{_MODULES.get(name, name)}")
        command: click.Command = getattr(module, "command", None) or getattr(
            module, name
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] == "help":
            args = [*args[1:2], "--help"]
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(unknown_command(args[0], _COMMANDS))
        return super().resolve_command(ctx, args)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            _fail_usage(error, "ggext")

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section(
            "Commands"
        ):  # from the table, without importing the commands
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.UsageError as error:  # click would print three lines
            _fail_usage(
                error, f"{ctx.command_path} {ctx.invoked_subcommand or ''}".rstrip()
            )
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
            if getattr(sys, "frozen", False):
                from ggext.chat.renderer import freeze_support

                freeze_support()
            return click.Group.main(
                self, args, prog_name, complete_var, standalone_mode=False, **extra
            )

        return run(command) if standalone_mode else command()


def _fail_usage(error: click.UsageError, command: str) -> NoReturn:
    if error.ctx is not None:
        command = error.ctx.command_path
    if isinstance(error, click.NoSuchOption):
        message = unknown_option(error)
    else:
        message = error.format_message().rstrip(".")
    sys.exit(print_error(f"{message}; see {command} --help", 2))


def _next_step() -> str:
    """The command that makes sense in this folder."""
    from pathlib import Path

    here = sorted(path.name for path in Path().glob("*.gguf"))
    if not here:
        return "next: ggext demo, which shows all three in a minute"
    return f"next: ggext show {here[0]}"


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", message="ggext %(version)s")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=debug,
    help="Show the traceback of an error of ggext itself.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Long contexts for local models: bake them into GGUF files, prove them in numbers, use them.

    \b
    ggext convert MODEL --yarn 4     a GGUF file that reaches four times the trained context
    ggext verify FILE                what the file says against what was asked
    ggext chat FILE                  a chat that tells how much of the context is used
    """
    if ctx.invoked_subcommand is None:
        click.echo(f"{_OVERVIEW}\n{_next_step()}")
