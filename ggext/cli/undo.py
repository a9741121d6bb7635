"""``ggext undo``."""

from __future__ import annotations

from pathlib import Path

import click

from ggext.cli.models import GGUF


@click.command(short_help="Take back what convert --in-place did.")
@click.argument("file", type=GGUF)
@click.option(
    "--yes", is_flag=True, help="Believe an undo file that proves nothing; do not ask."
)
def undo(file: Path, yes: bool) -> None:
    """Make FILE byte for byte what it was before its first change in place.

    FILE may be one of several parts, or their folder. What is needed stands in FILE.ggext-undo.
    Where that does not prove that it was made for FILE, as after a move to another disk, you are
    asked.
    """
    from ggext.cli.progress import transfer
    from ggext.cli.repair import ask_for_trust
    from ggext.gguf.inplace import UnprovenError
    from ggext.gguf.inplace import undo as run
    from ggext.gguf.shards import metadata_part

    path = metadata_part(file)
    try:
        with transfer(0, path.name) as progress:
            count = run(path, progress, trust=yes)
    except UnprovenError as error:
        ask_for_trust(str(error))
        with transfer(0, path.name) as progress:
            count = run(path, progress, trust=True)
    changes = "1 change" if count == 1 else f"{count} changes"
    click.echo(
        f"{path}: {changes} taken back; it is as it was ({path.stat().st_size:,} bytes)"
    )
