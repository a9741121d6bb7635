"""Options of the commands that measure a file: eval and search."""

from __future__ import annotations

from pathlib import Path

import click

form = click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "template", "raw"]),
    default="auto",
    show_default=True,
    help="Prompts in the file's chat template, or raw.",
)
seed = click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Which texts."
)
threads = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads on the CPU."
)
gpu_layers = click.option(
    "--gpu-layers", type=click.IntRange(min=0), metavar="N", help="Layers on the GPU."
)
card = click.option(
    "--card",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a section for a model card, in Markdown.",
)
