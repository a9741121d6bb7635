"""``ggext export``."""

from __future__ import annotations

from pathlib import Path

import click

from ggext.cli.models import MODEL


@click.command(short_help="Turn a GGUF file back into a Hugging Face checkpoint.")
@click.argument("file", type=MODEL)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the weights; auto: as in FILE, float32 where that is quantized.",
)
@click.option(
    "--original",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The checkpoint that FILE was made of; config.json and the tokenizer are enough.",
)
def export(file: Path, out: Path, dtype: str, original: Path | None) -> None:
    """Write FILE, a GGUF file, as a checkpoint in the folder OUT: weights, config.json, tokenizer.
    Files of the architectures llama, qwen2, qwen3 and gemma3 say all that it takes; of others name
    the original. The tokenizer is held against llama.cpp's.
    """
    from ggext.cli.progress import transfer
    from ggext.export import ExportOptions
    from ggext.export import export as run

    size = file.stat().st_size if file.is_file() else 0
    with transfer(size, out.name) as progress:
        done = run(ExportOptions(file, out, dtype, original), progress)
    for note in done.notes:
        click.echo(f"note: {note}")
    if done.tokens_compared is not None:
        click.echo(f"tokenizer: as llama.cpp's on {done.tokens_compared:,} tokens")
    click.echo(f"wrote {done.out}: {done.parameters:,} numbers in {done.dtype}")
