"""A conversation: turns in, a streamed answer out, over any vocabulary and engine."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ggext.chat.template import ChatTemplate
from ggext.chat.transcript import Turn
from ggext.errors import UsageError
from ggext.runtime.engine import FinishReason, Prefill, Sampling

Progress = Callable[[int, int], None]


class Vocabulary(Protocol):
    """What a conversation needs of `ggext.runtime.model.Model`."""

    @property
    def chat_template(self) -> str | None: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    def tokenize(self, text: str, *, add_special: bool = ..., parse_special: bool = ...) -> list[int]: ...
    def token_to_piece(self, token: int) -> bytes: ...
    def token_text(self, token: int) -> str: ...
    def is_control(self, token: int) -> bool: ...


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
    def evaluate(self, tokens: Sequence[int], progress: Progress | None = ...) -> Prefill: ...
    def generate(self, sampling: Sampling, max_tokens: int | None = ...) -> Answer: ...
    def cancel(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a turn went. Counts in tokens; ``kept``: the turn and its answer are in the conversation.

    A turn that was cancelled before its first token is not kept.
    """

    finish: FinishReason
    prefill: Prefill
    generated: int
    seconds: float
    kept: bool


class Conversation:
    """Turns over one engine. ``outcome`` tells how the last `ask` ended.

    Every turn is rendered from all turns before it; the engine evaluates only what changed. Without
    a chat template in the file the turns are one text, which the model continues.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        engine: Engine,
        sampling: Sampling,
        system: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.engine = engine
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.outcome: Outcome | None = None
        self._start = [Turn("system", system)] if system else []
        self.turns: list[Turn] = list(self._start)
        source = vocabulary.chat_template
        self.template = None if source is None else ChatTemplate(source, _special(vocabulary))

    def clear(self) -> None:
        """Starts over; the system prompt stays. The engine's cache is reused where it agrees."""
        self.turns = list(self._start)

    def ask(self, question: str, progress: Progress | None = None) -> Iterator[str]:
        """Sends a user turn and yields the answer's text as it comes; then see ``outcome``.

        Raises ContextFullError when the turn does not fit, TemplateError when the template refuses
        it; then nothing was sent and the conversation is as before.
        """
        asked = [*self.turns, Turn("user", question)]
        prefill = self.engine.evaluate(self.prompt(asked), progress)
        if prefill.cancelled:
            self.outcome = Outcome("cancelled", prefill, 0, 0.0, kept=False)
            return
        start = time.perf_counter()
        generation = self.engine.generate(self.sampling, self.max_tokens)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str] = []
        count = 0
        for token in generation:
            count += 1
            if text := decoder.decode(self.vocabulary.token_to_piece(token)):
                pieces.append(text)
                yield text
        if text := decoder.decode(b"", final=True):
            pieces.append(text)
            yield text
        finish = generation.finish
        assert finish is not None
        seconds = time.perf_counter() - start
        kept = count > 0 or finish != "cancelled"
        if kept:
            self.turns = [*asked, Turn("assistant", "".join(pieces))]
        self.outcome = Outcome(finish, prefill, count, seconds, kept)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens of the turns, the opening of the answer included, with one BOS at most.

        A control token that is spelled out in a turn stays text. Raises TemplateError.
        """
        if self.template is None:
            return self.vocabulary.tokenize("".join(turn.content for turn in turns))
        # A random mark inside each spelled-out control token; the text is cut there again, after
        # the template has done with it what it does.
        mark = f"\ue000{secrets.token_hex(8)}\ue000"
        guarded = [Turn(turn.role, self._guarded(turn.content, mark)) for turn in turns]
        tokens: list[int] = []
        for part in self.template.render(guarded).split(mark):
            tokens += self.vocabulary.tokenize(part, add_special=False, parse_special=True)
        if self.vocabulary.adds_bos and tokens[:1] != [self.vocabulary.bos]:
            tokens.insert(0, self.vocabulary.bos)
        return tokens

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.vocabulary.tokenize(text, add_special=False))

    def _guarded(self, content: str, mark: str) -> str:
        vocabulary = self.vocabulary
        tokens = vocabulary.tokenize(content, add_special=False, parse_special=True)
        spelled = {vocabulary.token_text(t) for t in set(tokens) if vocabulary.is_control(t)}
        for text in sorted(spelled, key=len, reverse=True):
            middle = len(text) // 2
            content = content.replace(text, text[:middle] + mark + text[middle:])
        return content


def _special(vocabulary: Vocabulary) -> dict[str, str]:
    tokens = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos}
    return {name: vocabulary.token_text(token) if token >= 0 else "" for name, token in tokens.items()}


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
