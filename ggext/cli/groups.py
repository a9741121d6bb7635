"""A command whose ``--help`` shows its options in groups, and examples after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def group(title: str, *options: _Decorator) -> _Decorator:
    """Options as one decorator, in the order in which ``--help`` shows them under ``title``."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
            parameters: list[click.Parameter] = command.__click_params__  # type: ignore[attr-defined]
            parameters[-1].help_group = title  # type: ignore[attr-defined]
        return command

    return decorate


class GroupedCommand(click.Command):
    """``examples``: (command line, what it does)."""

    def __init__(
        self, *arguments: Any, examples: Sequence[tuple[str, str]] = (), **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.examples = examples

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                title = getattr(parameter, "help_group", "Other options")
                sections.setdefault(title, []).append(record)
        other = sections.pop("Other options", [])
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if other:
            title = "Other options" if sections else "Options"
            with formatter.section(title):
                formatter.write_dl(other)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for command, purpose in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{command}\n")
                    formatter.indent()
                    formatter.write_text(purpose)
                    formatter.dedent()
