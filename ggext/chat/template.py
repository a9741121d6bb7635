"""A file's chat template: turns in, the prompt's text out."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ggext.chat.renderer import PATIENCE, ChildEnded, renderer
from ggext.errors import GgextError, UsageError

if TYPE_CHECKING:
    from ggext.chat.transcript import Turn

_MAX_TEMPLATE = 1 << 20
# Seconds of CPU time, to compile and for one render: by the clock, together less than five. The
# largest of llama.cpp's 70 templates compiles in 0.05.
_COMPILE_SECONDS = 0.8
_RENDER_SECONDS = 1.2
#: That a long conversation may take in addition.
_CHARACTERS_A_SECOND = 4_000_000
# A prompt is the turns and their markers; nothing grows them more than this.
_MAX_GROWTH = 8
_MAX_MARKERS = 1 << 20
_NO_TOOLS = {"tools": None, "documents": None}
_OWN_NAMES = {"messages", "add_generation_prompt"}


class TemplateError(GgextError):
    """The file's chat template is malformed, hostile, or refuses the conversation."""


@dataclass(frozen=True)
class TemplateChoice:
    """Which chat template is used, and how. Raises UsageError for options that are not plain.

    >>> TemplateChoice(options={"reasoning_effort": "high"}).source is None
    True
    """

    # A template instead of the file's own.
    source: str | None = None
    # Names that the template asks for, and their values: texts, numbers, booleans, None, lists,
    # dicts.
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.options.items():
            if not name.isidentifier() or name in _OWN_NAMES:
                raise UsageError(
                    f"{name!r:.80} is no name that a chat template can be given"
                )
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise UsageError(
                    f"the template option {name} is not plain data: {error}"
                ) from error


class ChatTemplate:
    """Renders turns with a Hugging Face chat template, as transformers does, in a child process
    with limits.

    ``special``: names such as ``bos_token`` and the spellings of those tokens. ``options``: further
    names that the template knows, and their values (of JSON's types). Raises TemplateError for a
    template that does not compile.
    """

    def __init__(
        self,
        source: str,
        special: Mapping[str, str],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if len(source) > _MAX_TEMPLATE:
            raise TemplateError(
                f"the file's chat template has {len(source)} characters, more than {_MAX_TEMPLATE}"
            )
        self._source = source
        self._special = dict(special)
        self._options = dict(options or {})
        for name in self._options:
            if re.search(rf"\b{name}\b", source) is None:
                raise UsageError(f"the chat template has no option {name:.80}")
        try:
            _checked(renderer.compile(source, _COMPILE_SECONDS))
        except ChildEnded as end:
            raise _ended(end, _COMPILE_SECONDS) from None

    def render(self, turns: Sequence[Turn], think: bool | None = None) -> str:
        """The prompt's text, the answer's opening included; ``think`` under the names that
        templates ask for.

        Raises TemplateError.
        """
        size = sum(len(turn.content) + len(turn.reasoning) for turn in turns)
        seconds = _RENDER_SECONDS + size / _CHARACTERS_A_SECOND
        values = {
            **self._special,
            "messages": [self._message(turn) for turn in turns],
            "add_generation_prompt": True,
            **({} if think is None else {"enable_thinking": think, "thinking": think}),
            **self._options,
        }
        most = _MAX_GROWTH * size + _MAX_MARKERS
        began = time.monotonic()
        try:
            # As transformers calls it. A template that goes through its tools without a look
            # whether there are any fails on None; without the name, as in llama.cpp, it does not.
            reply = renderer.render(self._source, _NO_TOOLS | values, most, seconds)
            if reply.get("error") == "fails":
                remaining = max(0.1, seconds - (time.monotonic() - began) / PATIENCE)
                again = renderer.render(self._source, values, most, remaining)
                reply = reply if "error" in again else again
        except ChildEnded as end:
            raise _ended(end, seconds) from None
        return str(_checked(reply)["text"])

    def _message(self, turn: Turn) -> dict[str, Any]:
        message: dict[str, Any] = {"role": str(turn.role), "content": str(turn.content)}
        if turn.reasoning:
            # Most templates know reasoning by the one name, Solar Open's by the other.
            short = (
                "reasoning_content" not in self._source
                and "message.reasoning" in self._source
            )
            message["reasoning" if short else "reasoning_content"] = str(turn.reasoning)
        return message


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    """The reply, unless it is an error. Raises TemplateError."""
    kind = reply.get("error")
    message = reply.get("message")
    if kind is None:
        return reply
    if kind == "syntax":
        raise TemplateError(
            f"the file's chat template, line {reply.get('line')}: {message}"
        )
    did = {
        "limit": "is not allowed",
        "fails": "fails",
        "refusal": "refuses this conversation",
    }[kind]
    raise TemplateError(f"the file's chat template {did}: {message}")


def _ended(end: ChildEnded, seconds: float) -> TemplateError:
    if end.unstarted:
        return TemplateError(
            f"the process that renders the chat template could not be started: {end.unstarted}"
        )
    if end.late:
        return TemplateError(
            f"the file's chat template is not allowed: more than {seconds:.3g} seconds"
        )
    return TemplateError(
        "the file's chat template is not allowed: it ended the process that renders it"
        " (more memory or nesting than any chat needs)"
    )
