"""An answer's text from its tokens: decoded across tokens, parted into reasoning and answer, cut at
stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ggext.chat.prompt import Detokenizer
from ggext.chat.reasoning import Splitter, Tags, Thought, held_back

if TYPE_CHECKING:
    from ggext.runtime.host import TextVocabulary


class AnswerText:
    """What one answer has become so far: ``text`` and ``reasoning``; ``stopped``: by a stop string.

    ``inside``: the prompt opened a reasoning block. Stop strings are looked for in the answer, not
    in the reasoning.
    """

    def __init__(
        self,
        vocabulary: TextVocabulary,
        tags: Tags | None = None,
        inside: bool = False,
        stop: Sequence[str] = (),
    ) -> None:
        self.text = ""
        self.reasoning = ""
        self.stopped = False
        marks = "" if tags is None else "".join(tags.marks)
        self._detokenizer = Detokenizer(vocabulary, marks)
        self._splitter = Splitter(tags, inside)
        self._stop = tuple(stop)
        self._held = ""

    @property
    def tokens(self) -> list[int]:
        """All tokens so far, those of the reasoning and of a stop string too."""
        return self._detokenizer.tokens

    def extend(self, tokens: Iterable[int]) -> Iterator[str]:
        """Takes tokens until they or the answer end; yields text as soon as it is certain,
        reasoning as Thought."""
        for token in tokens:
            if text := self._detokenizer.push(token):
                yield from self._pieces(self._splitter.feed(text))
                if self.stopped:
                    return

    def end(self) -> Iterator[str]:
        """The text that was held back, at the end of the answer; nothing the second time."""
        if not self.stopped:
            if text := self._detokenizer.rest():
                yield from self._pieces(self._splitter.feed(text))
            yield from self._pieces(self._splitter.end())
        held = self._held
        self._held = ""
        if not self.stopped and held:
            yield self._append(held)

    def _pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            if isinstance(piece, Thought):
                self.reasoning += piece
                yield piece
            elif not self.stopped and (text := self._unstopped(piece)):
                yield self._append(text)

    def _unstopped(self, piece: str) -> str:
        """The text in front of a stop string, or of what may become one."""
        if not self._stop:
            return piece
        self._held += piece
        places = [self._held.find(stop) for stop in self._stop]
        earliest = min((place for place in places if place >= 0), default=None)
        self.stopped = earliest is not None
        certain = (
            len(self._held) - held_back(self._held, self._stop)
            if earliest is None
            else earliest
        )
        text = self._held[:certain]
        self._held = self._held[certain:]
        return text

    def _append(self, text: str) -> str:
        self.text += text
        return text
