"""A conversation: turns in, a streamed answer out, over any vocabulary and engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ggext.chat.prompt import Detokenizer, Prompts, Vocabulary, behind_system, exchange, without
from ggext.chat.transcript import Turn
from ggext.errors import UsageError
from ggext.runtime.engine import FinishReason, Prefill, Sampling

Progress = Callable[[int, int], None]


class Answer(Protocol):
    """What a conversation needs of `ggext.runtime.engine.Generation`."""

    finish: FinishReason | None

    def __iter__(self) -> Iterator[int]: ...


class Engine(Protocol):
    """What a conversation needs of `ggext.runtime.engine.Session`."""

    @property
    def used(self) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def trained(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    def evaluate(self, tokens: Sequence[int], progress: Progress | None = ...) -> Prefill: ...
    def generate(self, sampling: Sampling, max_tokens: int | None = ...) -> Answer: ...
    def cancel(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a turn went. Counts in tokens; ``kept``: the turn and its answer are in the conversation.

    A turn that was cancelled before its first token is not kept. ``left``: turns that left the context for it,
    ``dropped``: tokens that did, where the engine drops tokens and not turns.
    """

    finish: FinishReason
    prefill: Prefill
    generated: int
    seconds: float
    kept: bool
    left: tuple[Turn, ...] = ()
    dropped: int = 0


class Conversation:
    """Turns over one engine. ``outcome`` tells how the last `ask` ended.

    Every turn is rendered from all turns before it; the engine evaluates only what changed. Without
    a chat template in the file the turns are one text, which the model continues. With ``drop_turns`` whole
    oldest turns leave the prompt when the context is full; ``turns`` keeps them all, ``left`` of them, behind the
    system prompt, are not in the context any more.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        engine: Engine,
        sampling: Sampling,
        system: str | None = None,
        max_tokens: int | None = None,
        drop_turns: bool = False,
    ) -> None:
        self.prompts = Prompts(vocabulary)
        self.engine = engine
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.drop_turns = drop_turns
        self.outcome: Outcome | None = None
        self._start = [Turn("system", system)] if system else []
        self.turns: list[Turn] = list(self._start)
        self.left = 0

    def clear(self) -> None:
        """Starts over; the system prompt stays. The engine's cache is reused where it agrees."""
        self.restart(self._start)

    def restart(self, turns: Sequence[Turn]) -> None:
        """Goes on from other turns."""
        self.turns = list(turns)
        self.left = 0

    def ask(self, question: str, progress: Progress | None = None) -> Iterator[str]:
        """Sends a user turn and yields the answer's text as it comes; then see ``outcome``.

        Raises ContextFullError when the turn does not fit, TemplateError when the template refuses
        it; then nothing was sent and the conversation is as before.
        """
        asked = [*self.turns, Turn("user", question)]
        answer = Detokenizer(self.prompts.vocabulary)
        before, dropped = self.left, self.engine.dropped
        prefill = self._read(asked, answer, progress)
        start = time.perf_counter()
        finish = (yield from self._continue(answer)) if not prefill.cancelled else "cancelled"
        while finish == "context" and self.drop_turns and exchange(asked, self.left):
            again = self._read(asked, answer, progress)
            finish = (yield from self._continue(answer)) if not again.cancelled else "cancelled"
        if rest := answer.rest():
            yield rest
        seconds = time.perf_counter() - start
        kept = bool(answer.tokens) or finish != "cancelled"
        if kept:
            self.turns = [*asked, Turn("assistant", answer.text)]
        left = tuple(behind_system(asked)[before : self.left])
        dropped = max(self.engine.dropped - dropped, 0)
        self.outcome = Outcome(finish, prefill, len(answer.tokens), seconds, kept, left, dropped)

    def _read(self, asked: list[Turn], answer: Detokenizer, progress: Progress | None) -> Prefill:
        """Evaluates the prompt, and what there is of the answer; without the turns that must leave."""
        turns, left = without(asked, self.left), 0
        if self.drop_turns:
            capacity = self.engine.used + self.engine.available
            tokens, left = self.prompts.fitted(turns, capacity - len(answer.tokens), reserve(capacity, self.max_tokens))
        else:
            tokens = self.prompts.tokens(turns)
        prefill = self.engine.evaluate([*tokens, *answer.tokens], progress)
        if not prefill.cancelled:
            self.left += left
        return prefill

    def _continue(self, answer: Detokenizer) -> Generator[str, None, FinishReason]:
        max_tokens = None if self.max_tokens is None else self.max_tokens - len(answer.tokens)
        generation = self.engine.generate(self.sampling, max_tokens)
        for token in generation:
            if text := answer.push(token):
                yield text
        assert generation.finish is not None
        return generation.finish

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.prompts.vocabulary.tokenize(text, add_special=False))


def reserve(capacity: int, max_tokens: int | None) -> int:
    """Tokens that are kept free for an answer where turns can leave: a quarter of the context at most."""
    most = max(capacity // 4, 1)
    return most if max_tokens is None else min(max_tokens, most)


def with_document(document: str, question: str) -> str:
    """One user turn: the document, at least one line break, the question."""
    return document + question if document.endswith("\n") else f"{document}\n{question}"


def check_text(data: bytes, name: str) -> str:
    """A document's text. Raises UsageError when it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start}): convert it, for example with iconv"
        ) from error
