"""What a chat is shown on: the protocol of a screen, and the line after a turn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ggext.chat.conversation import Outcome


@dataclass(frozen=True)
class Status:
    """Where a chat stands after a turn; counts in tokens."""

    # Of the `allocated` ones.
    used: int
    allocated: int
    # Before any extension.
    trained: int
    outcome: Outcome
    # Those of the turn that were read while it was typed.
    ahead: int = 0

    def __str__(self) -> str:
        prefill = self.outcome.prefill
        outcome = self.outcome
        ahead = f" and {self.ahead:,} while you typed" if self.ahead else ""
        return (
            f"context: {self.used:,} of {self.allocated:,} tokens, trained on {self.trained:,}; "
            f"read {prefill.evaluated:,}{_speed(prefill.evaluated, prefill.seconds)}{ahead}, "
            f"reused {prefill.reused - self.ahead:,}; "
            f"wrote {outcome.generated:,}{_speed(outcome.generated, outcome.seconds)}"
        )


class Screen(Protocol):
    """Where a chat is shown and typed. ``show_thoughts``: reasoning is shown, not only counted;
    ``markdown``: answers are painted as Markdown, where the screen can."""

    show_thoughts: bool
    markdown: bool

    def read(self, note: Callable[[], str] | None = None) -> str | None:
        """The next input, None at its end; ``note`` is a line to show meanwhile, and changes.
        Raises KeyboardInterrupt for Ctrl-C."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""

    def error(self, text: str) -> None:
        """Something that went wrong."""

    def status(self, status: Status) -> None:
        """The line after a turn."""

    def progress(self, done: int, total: int) -> None:
        """How much of a prompt is evaluated, in tokens."""

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """A block that may take long, and what is waited for."""

    def thought(self, text: str) -> None:
        """The next piece of the reasoning."""

    def answer(self, text: str) -> None:
        """The next piece of the answer."""

    def end_answer(self) -> None:
        """The answer, or the attempt at one, is over."""

    def interrupts(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """A block in which Ctrl-C calls `cancel` and nothing else."""


def _speed(tokens: int, seconds: float) -> str:
    return f" at {tokens / seconds:,.0f}/s" if tokens and seconds > 0 else ""
