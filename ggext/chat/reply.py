"""What happens in an answer, for programs: reading, reasoning, text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from ggext.chat.answer import AnswerText
from ggext.chat.reasoning import Thought
from ggext.runtime.answering import Answering, End, Happening


@dataclass(frozen=True)
class Reading:
    """The prompt is being read: ``done`` of ``total`` tokens that need evaluation."""

    done: int
    total: int


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model reasons before it answers."""

    text: str


@dataclass(frozen=True)
class Text:
    """A piece of the answer."""

    text: str


ReplyEvent = Reading | Reasoning | Text


class Events:
    """What happens in an answer, as it happens; see `Reply.events`."""

    def __init__(self, answering: Answering, answer: AnswerText) -> None:
        self._answering = answering
        self._answer = answer

    def __iter__(self) -> Iterator[ReplyEvent]:
        try:
            while (happening := self._answering.next_happening()) is not None:
                yield from self._events_of(happening)
        finally:
            self._answering.cancel()  # whoever leaves the loop has enough

    async def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        try:
            while (happening := await self._answering.await_happening()) is not None:
                for event in self._events_of(happening):
                    yield event
        finally:
            self._answering.cancel()

    def _events_of(self, happening: Happening) -> Iterator[ReplyEvent]:
        if isinstance(happening, tuple):
            yield Reading(*happening)
        elif isinstance(happening, int):
            yield from map(_event, self._answer.extend([happening]))
            if self._answer.stopped:
                self._answering.cancel()
        elif isinstance(happening, End):
            yield from map(_event, self._answer.end())


def _event(piece: str) -> Reasoning | Text:
    return Reasoning(str(piece)) if isinstance(piece, Thought) else Text(piece)
