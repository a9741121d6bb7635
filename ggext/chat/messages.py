"""What a program hands over, as a conversation: texts and dicts become turns and options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from ggext.arguments import check
from ggext.chat.transcript import ROLES, Turn, turn_of
from ggext.errors import UsageError
from ggext.runtime.sampling import Sampling

Message = Mapping[str, str] | Turn
#: A conversation: its messages, or the text of its one user turn.
Messages = str | Sequence[Message]


def turns_of(messages: Messages) -> list[Turn]:
    """The turns of a conversation. Raises UsageError for what is none, and for an empty one."""
    if isinstance(messages, str):
        return [Turn("user", messages)]
    if isinstance(messages, Mapping | Turn | bytes) or not isinstance(
        messages, Sequence
    ):
        raise UsageError(
            f"a conversation is a text or a list of messages, not {messages!r:.80}; one message "
            'is [{"role": "user", "content": "..."}]'
        )
    if not messages:
        raise UsageError("the conversation is empty: give it at least one user message")
    return [_turn(cast(Message, message)) for message in messages]


def answerable(turns: Sequence[Turn]) -> None:
    """Raises UsageError for a conversation that has nothing to answer at its end."""
    if turns[-1].role != "user":
        raise UsageError(
            f"the conversation ends with a message of the {turns[-1].role}: there is nothing to "
            "answer; end it with a user message, or continue a text with complete()"
        )


def sampling_of(sampling: Sampling | Mapping[str, Any] | None) -> Sampling:
    """The options for choosing tokens, also from their names and values. Raises UsageError."""
    if sampling is None:
        return Sampling()
    if isinstance(sampling, Sampling):
        return sampling
    if not isinstance(sampling, Mapping):
        raise UsageError(
            f"sampling is {sampling!r:.80}, but must be a Sampling or a dict"
        )
    known = [field.name for field in fields(Sampling)]
    for name in sampling:
        if name not in known:
            alike = difflib.get_close_matches(str(name), known, 1)
            suggestion = (
                f"did you mean {alike[0]}?"
                if alike
                else f"there are {', '.join(known)}"
            )
            raise UsageError(f"sampling has no {name!r:.40}; {suggestion}")
    return Sampling(**sampling)


def stops_of(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings, also a single one. Raises UsageError."""
    if isinstance(stop, str):
        return (stop,)
    check("stop", stop, str | Sequence[str])
    return tuple(stop)


def _turn(message: Message) -> Turn:
    if isinstance(message, Turn):
        return message
    turn = turn_of(message)
    if turn is None:
        raise UsageError(
            f"a message needs a role ({', '.join(ROLES)}) and a content, not {message!r:.80}"
        )
    return turn
