"""``ggext repair``."""

from __future__ import annotations

from pathlib import Path

import click

from ggext.cli.models import GGUF


@click.command(short_help="End what a crash interrupted in a file.")
@click.argument("file", type=GGUF)
@click.option(
    "--yes", is_flag=True, help="Believe an undo file that proves nothing; do not ask."
)
def repair(file: Path, yes: bool) -> None:
    """Take back, or complete, a change of FILE in place that a crash interrupted, and say which.

    Every command of ggext does so when it opens a file whose undo file proves that it was made for
    it. After a move to another disk it cannot: then this command asks.
    """
    from ggext.gguf.inplace import UnprovenError
    from ggext.gguf.inplace import repair as run
    from ggext.gguf.open import read_gguf
    from ggext.gguf.shards import metadata_part

    path = metadata_part(file)
    try:
        done = run(path, trust=yes)
    except UnprovenError as error:
        ask_for_trust(str(error))
        done = run(path, trust=True)
    read_gguf(path)
    click.echo(f"{path}: {done or 'nothing to repair'}")


def ask_for_trust(problem: str) -> None:
    """Ends the program unless the user believes the undo file."""
    click.echo(problem, err=True)
    question = (
        "Was it made here, by ggext, for this file? Its bytes are written into the file"
    )
    click.confirm(question, abort=True, err=True)
