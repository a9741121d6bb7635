"""``ggext show``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggext.cli.models import GGUF

if TYPE_CHECKING:
    from ggext.show import Card


@click.command(
    short_help="Show what a model is: size, template, licence, context, RoPE."
)
@click.argument("model", type=GGUF)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def show(model: Path, as_json: bool) -> None:
    """Show the card of MODEL, a GGUF file or a name that ggext list prints."""
    from ggext.show import show as run

    card = run(model)
    text = json.dumps(card.as_dict(), indent=2) if as_json else in_words(card)
    click.echo(text)


def in_words(card: Card) -> str:
    from ggext.cli.inspect import extension, method_words, si
    from ggext.cli.plan import size

    result = card.inspection
    made_of = f", from {', '.join(card.base_models)}" if any(card.base_models) else ""
    rope = result.rope_unknown or method_words(result)
    if not result.rope_unknown:
        rope += "; safe to roll" if result.shift_safe else "; do not let it roll"
    window = (
        f", {card.sliding_window:,} in sliding layers" if card.sliding_window else ""
    )
    heads = f"{card.heads} heads, {card.kv_heads} of keys and values"
    rows = {
        "name": result.name or "no name",
        "from": f"{card.author}{made_of}".strip(", "),
        "licence": card.license or "not said in the file",
        "architecture": f"{result.arch}, {card.layers} layers, {heads}",
        "parameters": si(result.parameters),
        "quantization": f"{card.quantization or 'not said'}, {size(result.size)}",
        "context": f"{result.context:,} tokens{extension(result)}{window}",
        "rope": rope,
        "vocabulary": f"{card.vocabulary:,} tokens, {card.tokenizer}",
        "chat template": card.template or "none: the model continues a text",
        "languages": ", ".join(card.languages),
    }
    return "\n".join(
        f"{name:14} {_printable(value)}" for name, value in rows.items() if value
    )


def _printable(text: str) -> str:
    """A stranger's words, none of which reaches the terminal as a command."""
    return "".join(c if c.isprintable() else "?" for c in text)
