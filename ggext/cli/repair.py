"""``ggext repair``."""

from __future__ import annotations

from pathlib import Path

import click

from ggext.cli.models import MODEL


@click.command(short_help="End what a crash interrupted in a file.")
@click.argument("file", type=MODEL)
def repair(file: Path) -> None:
    """Take back, or complete, a change of FILE in place that a crash interrupted, and say which.

    Every command of ggext does so when it opens a file; this one does nothing else.
    """
    from ggext.gguf.inplace import repair as run
    from ggext.gguf.open import read_gguf
    from ggext.gguf.shards import metadata_part

    path = metadata_part(file)
    done = run(path)
    read_gguf(path)
    click.echo(f"{path}: {done or 'nothing to repair'}")
