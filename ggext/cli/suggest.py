"""What was meant by a command or an option that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

import click

#: Commands of Ollama, llama.cpp and others → ours.
_COMMANDS = {
    "run": "chat",
    "ask": "chat",
    "ls": "list",
    "models": "list",
    "ps": "list",
    "download": "pull",
    "get": "pull",
    "info": "show",
    "card": "show",
    "metadata": "inspect",
    "bake": "convert",
    "scale": "convert",
    "extend": "convert",
    "quantize": "convert",
    "check": "verify",
    "prove": "verify",
    "create": "convert",
}
#: Options of llama.cpp's programs and its converter → ours, where the names have nothing in common.
_OPTIONS = {
    "--outfile": "the second argument, OUT",
    "--outtype": "--type",
    "--rope-scaling": "--rope",
    "--rope-scale": "--linear",
    "--rope-freq-scale": "--linear",
    "--rope-freq-base": "--ntk",
    "--yarn-orig-ctx": "--original-context",
    "--yarn-attn-factor": "--attention-factor",
    "--yarn-beta-fast": "--beta-fast",
    "--yarn-beta-slow": "--beta-slow",
    "--split-max-size": "--split",
    "--lora": "--adapter",
    "--cache-type-k": "--kv",
    "-ctk": "--kv",
    "-fa": "--flash-attention",
    "--temp": "--temperature",
    "--ctx-size": "--ctx",
    "--n-gpu-layers": "--gpu-layers",
    "--n-predict": "--max-tokens",
    "--predict": "--max-tokens",
}


def command_for(name: str, commands: Iterable[str]) -> str:
    """The command that was meant, empty for none."""
    suggestion = _COMMANDS.get(name)
    return suggestion or next(iter(get_close_matches(name, list(commands), 1, 0.7)), "")


def unknown_command(name: str, commands: Iterable[str]) -> str:
    suggestion = command_for(name, commands)
    hint = f"; did you mean ggext {suggestion}?" if suggestion else ""
    return f"no such command {name!r}{hint or ''}"


def unknown_option(error: click.NoSuchOption) -> str:
    command = error.ctx.command if error.ctx is not None else None
    own = (
        [name for p in command.params for name in p.opts] if command is not None else []
    )
    names = [name for name in own if name.startswith("-")]
    suggestion = _OPTIONS.get(error.option_name, "")
    if suggestion.startswith("-") and suggestion not in names:
        suggestion = ""
    if not suggestion:
        longer = [name for name in names if name.startswith(error.option_name)]
        close = longer if len(error.option_name) > 3 else []
        close = close or get_close_matches(error.option_name, names, 1, 0.75)
        suggestion = close[0] if close else ""
    return f"no such option {error.option_name}" + (
        f"; did you mean {suggestion}?" if suggestion else ""
    )
