"""``ggext list``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggext.checkpoint.stores import StoredModel

_WHERE = {
    "folder": "in this folder",
    "hub": "in the hub's cache",
    "ollama": "Ollama's",
    "lmstudio": "LM Studio's",
}


@click.command("list", short_help="List the models that are on this machine.")
@click.argument(
    "folder", required=False, type=click.Path(path_type=Path, file_okay=False)
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(folder: Path | None, as_json: bool) -> None:
    """List the models in FOLDER [here], in the hub's cache and in the stores of Ollama and LM
    Studio.

    Every command takes a model by its name in this list. Nothing is copied: a model is used where
    it lies.
    """
    from ggext.checkpoint.stores import stored_models

    models = stored_models(folder or Path())
    if as_json:
        click.echo(json.dumps([_as_dict(model) for model in models], indent=2))
    elif models:
        click.echo("\n".join(_lines(models)))
    else:
        click.echo(
            "no models are here; fetch one, for example: ggext pull Qwen/Qwen3-0.6B"
        )


def _lines(models: list[StoredModel]) -> list[str]:
    from ggext.cli.plan import size

    lines: list[str] = []
    store = ""
    for model in models:
        if model.store != store:
            store = model.store
            lines += ["", _WHERE[store]] if lines else [_WHERE[store]]
        lines.append(f"  {size(model.size):>9}  {_kind(model):26}  {model.name}")
    return lines


def _kind(model: StoredModel) -> str:
    """What it is and how far it reaches, from its header alone."""
    from ggext.errors import GgextError
    from ggext.gguf.open import read_gguf

    if not model.is_gguf:
        return "checkpoint, to convert"
    try:
        gguf = read_gguf(model.path)
    except GgextError:
        return "GGUF, not readable"
    context = gguf.arch_keys().get("context_length", 0)
    return f"{gguf.arch}, {context:,} tokens"


def _as_dict(model: StoredModel) -> dict[str, object]:
    return {
        "name": model.name,
        "store": model.store,
        "path": str(model.path),
        "size": model.size,
        "gguf": model.is_gguf,
    }
