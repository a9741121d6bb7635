"""Turns → the tokens of a prompt, and which turns stay when they do not fit."""

from __future__ import annotations

import codecs
import copy
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggext.chat.reasoning import (
    Tags,
    guarded,
    marks_of,
    opens_reasoning,
    tags_of,
    without_reasoning,
)
from ggext.chat.template import ChatTemplate, TemplateChoice
from ggext.chat.transcript import Turn
from ggext.errors import UsageError

if TYPE_CHECKING:
    from ggext.runtime.host import TextVocabulary

_TAIL = (
    32  # tokens, more than the longest reasoning tag and the line breaks after it have
)


class Prompts:
    """Makes prompts for one vocabulary. Without a chat template the turns are one text, which is
    continued.

    ``tags``: the template's reasoning tags. ``think``: whether the model should reason, None leaves
    it to the template. ``template``: another template than the vocabulary's, and its options.
    """

    def __init__(
        self,
        vocabulary: TextVocabulary,
        think: bool | None = None,
        template: TemplateChoice | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.think = think
        choice = template or TemplateChoice()
        source = vocabulary.chat_template if choice.source is None else choice.source
        if source is None and choice.options:
            raise UsageError("there is no chat template that could take options")
        self.template: ChatTemplate | None = None
        self.tags: Tags | None = None
        self._marks: frozenset[str] = frozenset()
        if source is not None:
            self.template = ChatTemplate(source, _special(vocabulary), choice.options)
            self.tags = tags_of(source)
            self._marks = marks_of(source)

    def tokens(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens of the turns, the opening of the answer included, with one BOS at most.

        A control token or a mark of the template that is spelled out in a turn stays text. Raises
        TemplateError.
        """
        if self.template is None:
            return self.vocabulary.tokenize("".join(turn.content for turn in turns))
        # A random cut inside each spelled-out control token, where the text is parted again after
        # the template has done with it what it does, and a random guard inside each other mark.
        cut, guard = (f"\ue000{secrets.token_hex(8)}\ue000" for _ in range(2))
        turns = [self._guarded(turn, cut, guard) for turn in turns]
        text = self.template.render(turns, self.think).replace(guard, "")
        if self.think is False and self.tags is not None:
            text = without_reasoning(text, self.tags)
        tokens: list[int] = []
        for part in text.split(cut):
            tokens += self.vocabulary.tokenize(
                part, add_special=False, parse_special=True
            )
        if self.vocabulary.adds_bos and tokens[:1] != [self.vocabulary.bos]:
            tokens.insert(0, self.vocabulary.bos)
        return tokens

    def thinking(self, think: bool | None) -> Prompts:
        """The same with another ``think``."""
        other = copy.copy(self)
        other.think = think
        return other

    def fitted(
        self, turns: Sequence[Turn], room: int, reserve: int
    ) -> tuple[list[int], int]:
        """The prompt with whole oldest turns left out until it fits `room` less `reserve` tokens,
        and how many.

        When any must leave, more do, until twice the reserve is free: else each turn would make the
        whole context be read again. The system prompt and the last turn always stay.
        """
        tokens = self.tokens(turns)
        dropped_turns = 0
        if len(tokens) <= room - reserve:
            return tokens, 0
        while len(tokens) > room - 2 * reserve and (
            leaving := exchange(turns, dropped_turns)
        ):
            dropped_turns += leaving
            tokens = self.tokens(without(turns, dropped_turns))
        return tokens, dropped_turns

    def opens_reasoning(self, tokens: Sequence[int]) -> bool:
        """Whether a prompt ends inside a reasoning block, so that the answer begins in it."""
        if self.tags is None:
            return False
        tail = Detokenizer(self.vocabulary, self.tags.start)
        return opens_reasoning("".join(map(tail.push, tokens[-_TAIL:])), self.tags)

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.vocabulary.tokenize(text, add_special=False))

    def _guarded(self, turn: Turn, cut: str, guard: str) -> Turn:
        content, reasoning = (
            guarded(self._cut(text, cut), self._marks, guard)
            for text in (turn.content, turn.reasoning)
        )
        return replace(turn, content=content, reasoning=reasoning)

    def _cut(self, content: str, cut: str) -> str:
        vocabulary = self.vocabulary
        tokens = vocabulary.tokenize(content, add_special=False, parse_special=True)
        spelled = {
            vocabulary.token_text(t) for t in set(tokens) if vocabulary.is_control(t)
        }
        for text in sorted(spelled, key=len, reverse=True):
            middle = len(text) // 2
            content = content.replace(text, text[:middle] + cut + text[middle:])
        return content


class Detokenizer:
    """Tokens in, text out: UTF-8 that is complete, broken bytes marked. ``tokens`` and ``text``:
    all so far.

    Control tokens have no text; but those that occur in ``marks`` are spelled.
    """

    def __init__(self, vocabulary: TextVocabulary, marks: str = "") -> None:
        self.tokens: list[int] = []
        self._vocabulary = vocabulary
        self._marks = marks
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """The text that the token completes, often empty within a character."""
        self.tokens.append(token)
        return self._kept(self._decoder.decode(self._piece(token)))

    def rest(self) -> str:
        """What is left at the end."""
        return self._kept(self._decoder.decode(b"", final=True))

    def _piece(self, token: int) -> bytes:
        if self._marks and self._vocabulary.is_control(token):
            spelled = self._vocabulary.token_text(token)
            if spelled and spelled in self._marks:
                return spelled.encode()
        return self._vocabulary.token_to_piece(token)

    def _kept(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text


def without(turns: Sequence[Turn], dropped_turns: int) -> list[Turn]:
    """The turns without the `dropped_turns` oldest ones after the system prompt."""
    start = _first(turns)
    return [*turns[:start], *turns[start + dropped_turns :]]


def exchange(turns: Sequence[Turn], dropped_turns: int) -> int:
    """How many turns leave together after the `dropped_turns` oldest: up to the next user turn;
    0: none can."""
    start = _first(turns) + dropped_turns
    following = (i for i in range(start + 1, len(turns)) if turns[i].role == "user")
    return next(following, start) - start


def behind_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns without the system prompt."""
    return turns[_first(turns) :]


def _first(turns: Sequence[Turn]) -> int:
    return 1 if turns and turns[0].role == "system" else 0


def _special(vocabulary: TextVocabulary) -> dict[str, str]:
    tokens = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos}
    return {
        name: vocabulary.token_text(token) if token >= 0 else ""
        for name, token in tokens.items()
    }
