"""``ggext pull``."""

from __future__ import annotations

import click


@click.command(short_help="Fetch a model from the Hugging Face hub.")
@click.argument("model", metavar="ID[:FILE]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit.")
def pull(model: str, revision: str | None) -> None:
    """Fetch a checkpoint, or a GGUF file, from the Hugging Face hub into its cache.

    FILE is a file's name or a part of it, such as Q4_K_M, which is taken of several GGUF files
    where none is named. What has arrived is kept: an interrupted pull goes on where it ended.

    \b
    ggext pull Qwen/Qwen3-0.6B
    ggext pull bartowski/Llama-3.2-1B-Instruct-GGUF:Q8_0
    """
    from ggext.checkpoint.pull import pull as run
    from ggext.cli.plan import size

    fetched = run(model, revision, show_progress=True)
    click.echo(f"{fetched.name}: {size(fetched.size)}, in the hub's cache")
    command = "chat" if fetched.is_gguf else "convert"
    click.echo(f"next: ggext {command} {fetched.name}")
