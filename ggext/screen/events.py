"""A chat as lines of JSON on the standard output, for programs; docs/chat.md describes them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from ggext.screen.flags import in_flags
from ggext.screen.interrupt import on_interrupt

if TYPE_CHECKING:
    from ggext.chat.screens import Status

_BETWEEN_COUNTS = 0.2  # seconds


class JsonScreen:
    """Each event is one line, an object with ``event``; it is flushed at once."""

    def __init__(self) -> None:
        self.show_thoughts = True
        self.markdown = False
        self._text = ""
        self._reasoning = ""
        self._start = 0.0
        self._counted = 0.0

    def read(self, note: Callable[[], str] | None = None) -> str | None:  # noqa: ARG002 - of the protocol
        """Nothing is typed here."""
        return None

    def notice(self, text: str) -> None:
        """A sentence for the user."""
        _write("notice", text=in_flags(text))

    def error(self, text: str) -> None:
        """What went wrong."""
        _write("error", text=in_flags(text))

    def progress(self, done: int, total: int) -> None:
        """Tokens of the prompt that are evaluated, a few times a second, and the seconds that are
        left."""
        now = time.monotonic()
        if done == 0:
            self._start = now
        if done in (0, total) or now - self._counted > _BETWEEN_COUNTS:
            self._counted = now
            remaining = (
                round((now - self._start) / done * (total - done), 1) if done else None
            )
            _write("prefill", done=done, total=total, seconds_left=remaining)

    def waiting(self, text: str) -> AbstractContextManager[None]:  # noqa: ARG002 - no one watches
        """Nothing."""
        return nullcontext()

    def thought(self, text: str) -> None:
        """The next piece of the reasoning."""
        self._reasoning += text
        _write("reasoning", text=text)

    def answer(self, text: str) -> None:
        """The next piece of the answer."""
        self._text += text
        _write("text", text=text)

    def end_answer(self) -> None:
        """Nothing: `status` follows."""

    def status(self, status: Status) -> None:
        """The last event: the whole answer, and the counts."""
        outcome = status.outcome
        _write(
            "end",
            finish=outcome.finish,
            text=self._text,
            reasoning=self._reasoning,
            context={
                "used": status.used,
                "allocated": status.allocated,
                "trained": status.trained,
            },
            prefill={
                "evaluated": outcome.prefill.evaluated,
                "reused": outcome.prefill.reused,
                "seconds": round(outcome.prefill.seconds, 6),
            },
            generated={
                "tokens": outcome.generated,
                "seconds": round(outcome.seconds, 6),
            },
        )

    def interrupts(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """A block in which Ctrl-C calls `cancel`."""
        return on_interrupt(cancel)


def _write(event: str, **fields: object) -> None:
    # ASCII: readable whatever the encoding of the pipe is.
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()
