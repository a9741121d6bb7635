"""What the user reads after a turn: what left the context, and why the answer ended."""

from __future__ import annotations

from collections.abc import Sequence

from ggext.chat.conversation import Conversation, Outcome
from ggext.chat.prompt import behind_system
from ggext.chat.screens import Status
from ggext.chat.transcript import Turn

_FINISHES = {
    "length": "the answer was stopped at its longest length (--max-tokens)",
    "context": "the context is full: the answer stops here, nothing was dropped",
    "cancelled": "stopped",
}
_WITHDRAWN = "stopped before the answer: the turn was taken back"
_ONLY_REASONED = (
    "the model only reasoned and gave no answer: --think show shows what, --think off asks for "
    "none, a larger --max-tokens leaves room for both"
)
_QUOTED = 40  # characters of a turn that left
_UNSEEN = "the model does not see them any more, /save keeps them"


def notices(outcome: Outcome) -> list[str]:
    """What left the context, and why the answer ended, unless the model ended it."""
    lines = []
    if outcome.dropped_turns:
        lines.append(
            f"the context was full: {_oldest(outcome.dropped_turns, 'left it')}; {_UNSEEN}"
        )
    if outcome.dropped:
        lines.append(
            f"the context was full: {outcome.dropped:,} of the oldest tokens left it"
        )
    if outcome.forgotten:
        lines.append(
            f"{outcome.forgotten:,} tokens that had left the context cannot be brought back any "
            "more: --evicted-memory is the memory for them"
        )
    if outcome.only_reasoned:
        lines.append(_ONLY_REASONED)
    ending = _FINISHES.get(outcome.finish) if outcome.kept else _WITHDRAWN
    return [*lines, ending] if ending else lines


def left_earlier(conversation: Conversation) -> list[str]:
    """What of a chat that goes on had left the context, which may be larger than it was. Raises
    TemplateError."""
    gone = behind_system(conversation.turns)[: conversation.dropped_turns]
    if not gone:
        return []
    seen_again = conversation.bring_back()
    so = (
        "they fit into this one, and the next turn reads the chat again"
        if seen_again
        else _UNSEEN
    )
    return [f"{_oldest(gone, 'left the context earlier')}; {so}"]


def _oldest(gone: Sequence[Turn], did: str) -> str:
    words = " ".join(gone[0].content.split())
    first = words if len(words) <= _QUOTED else f"{words[:_QUOTED]}…"
    return f"the {len(gone)} oldest turns {did}, from “{first}” on"


def status(conversation: Conversation, outcome: Outcome, ahead: int = 0) -> Status:
    """Where the chat stands after a turn; ``ahead``: tokens of it that were read before it was
    sent."""
    engine = conversation.engine
    return Status(
        engine.used, engine.used + engine.available, engine.trained, outcome, ahead
    )
