"""Every command with its options, as docs/commands.md shows them: from the program's own help.

python tools/commands_page.py > docs/commands.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from ggext.cli import main

#: Columns of a help text, whatever the terminal is.
_WIDTH = 80

_HEAD = """# Commands

<!-- made by `python tools/commands_page.py > docs/commands.md`; a test fails when it is stale -->

`ggext COMMAND --help` prints the same. The [tutorial](tutorial.md) shows the commands in use.
"""


def page() -> str:
    parts = [_HEAD]
    for names, help_text in _helps(main, ("ggext",)):
        level = "#" * min(len(names) + 1, 4)
        parts.append(
            f"{level} {' '.join(names)}\n\n```text\n{help_text.rstrip()}\n```\n"
        )
    return "\n".join(parts)


def _helps(
    command: click.Command, names: tuple[str, ...], parent: click.Context | None = None
) -> Iterator[tuple[tuple[str, ...], str]]:
    """The help of a command, then those of the commands in it."""
    context = click.Context(
        command,
        parent,
        info_name=names[-1],
        terminal_width=_WIDTH - 2,
        **command.context_settings,
    )
    yield names, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _helps(child, (*names, name), context)


if __name__ == "__main__":
    sys.stdout.write(page())
