"""ggext chats: the chats that are kept."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def chats(context: click.Context) -> None:
    """The chats that are kept: list, rename, delete and export them.

    \b
    ggext chats                      lists them, the last used one first
    ggext chat --session NAME        continues one
    """
    if context.invoked_subcommand is None:
        context.invoke(list_chats)


@chats.command("list")
def list_chats() -> None:
    """List them, the last used one first."""
    from ggext.chat.shelf import kept_chats

    kept = kept_chats()
    if not kept:
        click.echo("no chat is kept; ggext chat FILE begins one")
    width = max((len(one.name) for one in kept), default=0)
    for one in kept:
        click.echo(
            f"{one.name:<{width}}  {one.used}  {one.questions}, {one.model}: {one.begins}"
        )


@chats.command()
@click.argument("old")
@click.argument("new")
def rename(old: str, new: str) -> None:
    """Give the chat OLD the name NEW."""
    from ggext.chat.shelf import rename_chat

    rename_chat(old, new)
    click.echo(f"{old} is {new} now: ggext chat --session {new}")


@chats.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete(names: tuple[str, ...]) -> None:
    """Delete chats, with what was said and their KV caches."""
    from ggext.chat.shelf import delete_chat

    for name in names:
        delete_chat(name)
        click.echo(f"deleted {name}")


@chats.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
def export(name: str, file: Path) -> None:
    """Write a chat to FILE: as Markdown, or where it ends with .json for ggext chat --load."""
    from ggext.chat.shelf import export_chat

    click.echo(f"wrote {export_chat(name, file)} to {file}")
