"""What /set shows and changes: how tokens are chosen, how long answers are, whether reasoning is
shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from ggext.errors import UsageError

if TYPE_CHECKING:
    from ggext.chat.conversation import Conversation
    from ggext.chat.screens import Screen

Think = Literal["show", "hide", "off"]
THINK: tuple[Think, ...] = get_args(Think)
_OFF = "none"


def _optional(number: str) -> int | None:
    return None if number == _OFF else int(number)


_SAMPLING: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top-k": int,
    "top-p": float,
    "min-p": float,
    "repeat-penalty": float,
    "seed": _optional,
}

_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_ESCAPE = re.compile(r"\\([ntr\\])")
#: What llama.cpp and Ollama call them.
_OTHER_NAMES = {
    "temp": "temperature",
    "n": "max-tokens",
    "n-predict": "max-tokens",
    "num-predict": "max-tokens",
    "repetition-penalty": "repeat-penalty",
}

#: What /set knows, in the order in which it shows it.
NAMES = (*_SAMPLING, "max-tokens", "stop", "think")


def current(conversation: Conversation, screen: Screen) -> dict[str, str]:
    """Every setting's name and value."""
    options = conversation.options
    sampled = {name: getattr(conversation.sampling, _field(name)) for name in _SAMPLING}
    think = (
        "off"
        if conversation.prompts.think is False
        else "show"
        if screen.show_thoughts
        else "hide"
    )
    shown = sampled | {
        "max-tokens": options.max_tokens,
        "stop": " ".join(map(repr, options.stop)) or None,
        "think": think,
    }
    return {
        name: _OFF if value is None else str(value) for name, value in shown.items()
    }


def change(conversation: Conversation, screen: Screen, name: str, value: str) -> str:
    """Changes one setting from now on; what it was and is. Raises UsageError."""
    name = _known(name)
    before = current(conversation, screen)[name]
    _change(conversation, screen, name, value)
    now = current(conversation, screen)[name]
    return f"{name}: {before} → {now}" if before != now else f"{name}: {now}, as it was"


def _known(name: str) -> str:
    """The setting that is meant: its name, with _ for -, or what other programs call it."""
    key = name.lower().lstrip("-").replace("_", "-")
    key = _OTHER_NAMES.get(key, key)
    if key in NAMES:
        return key
    alike = closest(key)
    suggestion = (
        f"did you mean {alike}?" if alike else f"the settings are {', '.join(NAMES)}"
    )
    raise UsageError(f"there is no setting {name}; {suggestion}")


def closest(name: str) -> str:
    """The setting whose name, here or in other programs, is most like this one; empty for none."""
    names = {name: name for name in NAMES} | _OTHER_NAMES
    alike = difflib.get_close_matches(name.lower().replace("_", "-"), names, 1, 0.7)
    return names[alike[0]] if alike else ""


def _change(conversation: Conversation, screen: Screen, name: str, value: str) -> None:
    if name == "think":
        set_think(conversation, screen, value)
    elif name == "stop":
        stop = () if value == _OFF else (_unescaped(value),)
        conversation.options = replace(conversation.options, stop=stop)
    elif name == "max-tokens":
        count = _number(name, _optional, value)
        if count is not None and count < 1:
            raise UsageError(
                f"max-tokens is {count}, but must be at least 1, or {_OFF}"
            )
        conversation.options = replace(conversation.options, max_tokens=count)
    else:
        number = _number(name, _SAMPLING[name], value)
        conversation.sampling = replace(conversation.sampling, **{_field(name): number})


def _unescaped(text: str) -> str:
    """The text with line breaks and tabs where they are written as in a program."""
    return _ESCAPE.sub(lambda match: _ESCAPED[match[1]], text)


def set_think(conversation: Conversation, screen: Screen, value: str) -> None:
    """``show`` or ``hide`` the reasoning, or ask the model for none (``off``). Raises
    UsageError."""
    if value not in THINK:
        raise UsageError(f"think is {value}, but must be one of {', '.join(THINK)}")
    screen.show_thoughts = value == "show"
    conversation.prompts.think = (
        value != "off" and conversation.sampling.grammar is None
    )


def _number(name: str, parse: Callable[[str], Any], value: str) -> Any:
    try:
        return parse(value)
    except ValueError:
        raise UsageError(f"{name} is {value}, but must be a number") from None


def _field(name: str) -> str:
    return name.replace("-", "_")
