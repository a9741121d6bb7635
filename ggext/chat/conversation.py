"""A conversation: turns in, a streamed answer out, over any vocabulary and engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from ggext.arguments import check_fields
from ggext.chat.answer import AnswerText
from ggext.chat.prompt import Prompts, behind_system, exchange, without
from ggext.chat.template import TemplateChoice
from ggext.chat.transcript import Turn
from ggext.errors import UsageError
from ggext.runtime.engine import FinishReason, Prefill, Sampling, common_prefix_length

if TYPE_CHECKING:
    from ggext.runtime.host import TextVocabulary

Progress = Callable[[int, int], None]
Finish = FinishReason | Literal["stop"]


class Answer(Protocol):
    """What a conversation needs of `ggext.runtime.engine.Generation`."""

    finish: FinishReason | None

    def __iter__(self) -> Iterator[int]: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """What a conversation needs of `ggext.runtime.engine.Session`."""

    @property
    def used(self) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def trained(self) -> int: ...
    @property
    def ever_dropped(self) -> int: ...
    @property
    def forgotten(self) -> int: ...
    def evaluate(
        self,
        tokens: Sequence[int],
        progress: Progress | None = ...,
        *,
        repeatable: bool = ...,
    ) -> Prefill: ...
    def read_ahead(
        self,
        tokens: Sequence[int],
        progress: Progress | None = ...,
        *,
        repeatable: bool = ...,
    ) -> Prefill: ...
    def generate(self, sampling: Sampling, max_tokens: int | None = ...) -> Answer: ...
    def compress(self, share: float) -> None: ...
    def cancel(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a turn went; counts in tokens. ``finish`` "stop": by a stop string."""

    finish: Finish
    prefill: Prefill
    generated: int
    seconds: float
    # Whether the turn and its answer are in the conversation. A turn that was cancelled before its
    # first token is not.
    kept: bool
    # Turns that left the context for this one.
    dropped_turns: tuple[Turn, ...] = ()
    # Tokens that left it, where the engine drops tokens and not turns.
    dropped: int = 0
    # Tokens that had left it, and that no question can bring back any more.
    forgotten: int = 0
    # whether all that was kept of the answer is reasoning
    only_reasoned: bool = False


@dataclass(frozen=True)
class ChatOptions:
    """How a conversation is held. Raises UsageError."""

    # The system prompt.
    system: str | None = None
    # The longest answer.
    max_tokens: int | None = None
    # Texts that end an answer and are not part of it.
    stop: tuple[str, ...] = ()
    # Whether the model should reason first; None: as its template does by itself.
    think: bool | None = None
    # Whole oldest turns leave the prompt when the context is full.
    drop_turns: bool = False
    # Another template than the file's, and its options.
    template: TemplateChoice = field(default_factory=TemplateChoice)

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(self.stop):
            raise UsageError(
                "a stop string is empty; leave it out, or write what should end the answer"
            )
        if self.max_tokens is not None and self.max_tokens < 0:
            raise UsageError(
                f"max_tokens is {self.max_tokens}, but must not be negative"
            )


class Conversation:
    """Turns over one engine. ``outcome`` tells how the last `ask` ended.

    Every turn is rendered from all turns before it; the engine evaluates only what changed. Without
    a chat template in the file the turns are one text, which the model continues. ``turns`` keeps
    all of them; the ``dropped_turns`` oldest after the system prompt are not in the context any
    more.
    """

    def __init__(
        self,
        vocabulary: TextVocabulary,
        engine: Engine,
        sampling: Sampling,
        options: ChatOptions | None = None,
    ) -> None:
        self.options = options or ChatOptions()
        # A grammar describes the answer alone: the model is to begin with it.
        thinks = False if sampling.grammar is not None else self.options.think
        self.prompts = Prompts(vocabulary, thinks, self.options.template)
        self.engine = engine
        self.sampling = sampling
        self.outcome: Outcome | None = None
        self.turns: list[Turn] = []
        self.dropped_turns = 0
        self._reported = (engine.ever_dropped, engine.forgotten)
        self.set_system(self.options.system)
        self._prompt: list[Turn] | None = None
        self._answer: AnswerText | None = None
        # the turns that the engine's cache was last made for
        self._cached: list[Turn] = []

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return (
            self.turns[0].content
            if self.turns and self.turns[0].role == "system"
            else None
        )

    def set_system(self, system: str | None) -> None:
        """Another system prompt, or none, before the turns that there are."""
        start = [Turn("system", system)] if system else []
        self.turns = [*start, *self.turns[self.system is not None :]]

    def clear(self) -> None:
        """Starts over; the system prompt stays. The engine's cache is reused where it agrees."""
        self.restart(self.turns[: self.system is not None])

    def restart(self, turns: Sequence[Turn], dropped_turns: int = 0) -> None:
        """Continues from other turns, of which the ``dropped_turns`` oldest after the system prompt
        have left the context."""
        self.turns = list(turns)
        self.dropped_turns = dropped_turns

    @property
    def used(self) -> int:
        """Tokens of the context that the chat as it stands takes. Raises TemplateError.

        The cache may hold more: of what was taken back, or of a document that is being read.
        """
        turns = without(self.turns, self.dropped_turns)
        if not behind_system(turns):
            return 0
        return (
            self.engine.used
            if self.turns == self._cached
            else len(self.prompts.tokens(turns))
        )

    def change_engine(self, engine: Engine) -> None:
        """Continues with another engine, which may hold the same tokens."""
        self.engine = engine
        self._left_since()
        if not self.options.drop_turns:
            self.dropped_turns = 0

    def is_cached(self) -> None:
        """The engine's cache was filled for the turns that there are. What had left the context
        by then is no news of the next turn."""
        self._cached = list(self.turns)
        self._left_since()

    def _left_since(self) -> tuple[int, int]:
        """Tokens that left the context since this was asked last, and that were forgotten."""
        dropped, forgotten = self._reported
        self._reported = (self.engine.ever_dropped, self.engine.forgotten)
        return self._reported[0] - dropped, self._reported[1] - forgotten

    def bring_back(self) -> bool:
        """Whether the turns that left fit into this context with room for an answer; then they are
        part of the next prompt. Raises TemplateError."""
        capacity = self.engine.used + self.engine.available
        whole = len(self.prompts.tokens(self.turns)) <= capacity - 2 * reserve(
            capacity, self.options.max_tokens
        )
        self.dropped_turns = 0 if whole else self.dropped_turns
        return whole

    def undo(self) -> list[Turn]:
        """Takes the last question and its answer back; they are returned, empty where there are
        none."""
        last = max(
            (i for i, turn in enumerate(self.turns) if turn.role == "user"),
            default=len(self.turns),
        )
        taken = self.turns[last:]
        del self.turns[last:]
        self.dropped_turns = min(self.dropped_turns, len(behind_system(self.turns)))
        return taken

    @property
    def is_repeatable(self) -> bool:
        """Whether the same question gets the same answer, whatever the cache holds of it: there is
        a seed. Then each answer is read again, in the batches of a text."""
        return self.sampling.seed is not None

    @property
    def so_far(self) -> list[Turn]:
        """The turns, with what of the running turn there is."""
        if self._prompt is None:
            return self.turns
        answer = self._answer
        if answer is None or not (answer.text or answer.reasoning):
            return self._prompt
        return [*self._prompt, Turn("assistant", answer.text, answer.reasoning)]

    def ask(self, question: str, progress: Progress | None = None) -> Iterator[str]:
        """Sends a user turn and yields the answer's text as it comes, reasoning as Thought; then
        see ``outcome``.

        Raises ContextFullError when the turn does not fit, TemplateError when the template refuses
        it; then nothing was sent and the conversation is as before.
        """
        prompt = self._prompt = [*self.turns, Turn("user", question)]
        before = self.dropped_turns
        clock = _Clock()
        finish: Finish = "cancelled"
        try:
            prefill, answer = self._read(prompt, None, progress)
            self._answer = answer
            if not prefill.cancelled:
                finish = yield from self._generate(prompt, answer, clock, progress)
        # what was said stays, also when the engine fails in the middle or the caller has enough
        finally:
            last = self._answer
            self._prompt = None
            self._answer = None
            kept = last is not None and (bool(last.tokens) or finish != "cancelled")
            if last is not None and kept:
                list(last.end())  # what a tag or a stop string might have started in
                self.turns = [*prompt, Turn("assistant", last.text, last.reasoning)]
        dropped = tuple(behind_system(prompt)[before : self.dropped_turns])
        self._cached = list(self.turns)
        only_reasoned = kept and bool(answer.reasoning) and not answer.text.strip()
        self.outcome = Outcome(
            finish,
            prefill,
            len(answer.tokens),
            clock.seconds,
            kept,
            dropped,
            *self._left_since(),
            only_reasoned,
        )

    def first_prompt(self, question: str) -> list[int]:
        """The prompt that the question would make after `clear`. Raises TemplateError."""
        system = self.turns[: len(self.turns) - len(behind_system(self.turns))]
        return self.prompts.tokens([*system, Turn("user", question)])

    def next_prompt(self, question: str) -> list[int]:
        """The prompt that the question would make as things are. Raises TemplateError."""
        turns = without(self.turns, self.dropped_turns)
        return self.prompts.tokens([*turns, Turn("user", question)])

    def certain(self, beginning: str) -> list[int]:
        """The tokens of the next prompt as far as the beginning of its turn decides them; none
        where it does not fit as things are. Raises TemplateError."""
        prompt = self.next_prompt(f"{beginning}A")
        capacity = self.engine.used + self.engine.available
        kept_free = (
            reserve(capacity, self.options.max_tokens) if self.options.drop_turns else 0
        )
        if len(prompt) > capacity - kept_free:
            return []
        return prompt[: common_prefix_length(prompt, self.next_prompt(f"{beginning}1"))]

    def _generate(
        self,
        prompt: list[Turn],
        answer: AnswerText,
        clock: _Clock,
        progress: Progress | None,
    ) -> Generator[str, None, Finish]:
        finish = yield from self._continue(answer, clock)
        # A grammar would begin again in the middle of the answer.
        may_drop = self.options.drop_turns and self.sampling.grammar is None
        while finish == "context" and may_drop and exchange(prompt, self.dropped_turns):
            again, _ = self._read(prompt, answer, progress)
            finish = "cancelled"
            if not again.cancelled:
                finish = yield from self._continue(answer, clock)
        yield from answer.end()
        return "stop" if answer.stopped else finish

    def _read(
        self, prompt: list[Turn], answer: AnswerText | None, progress: Progress | None
    ) -> tuple[Prefill, AnswerText]:
        """Evaluates the prompt, and what there is of the answer; without the turns that must
        leave."""
        turns = without(prompt, self.dropped_turns)
        newly_dropped = 0
        answer_tokens = answer.tokens if answer is not None else []
        if self.options.drop_turns:
            capacity = self.engine.used + self.engine.available
            kept_free = reserve(capacity, self.options.max_tokens)
            tokens, newly_dropped = self.prompts.fitted(
                turns, capacity - len(answer_tokens), kept_free
            )
        else:
            tokens = self.prompts.tokens(turns)
        prefill = self.engine.evaluate(
            [*tokens, *answer_tokens], progress, repeatable=self.is_repeatable
        )
        if not prefill.cancelled:
            self.dropped_turns += newly_dropped
        if answer is None:
            inside = self.prompts.opens_reasoning(tokens)
            answer = AnswerText(
                self.prompts.vocabulary, self.prompts.tags, inside, self.options.stop
            )
        return prefill, answer

    def _continue(
        self, answer: AnswerText, clock: _Clock
    ) -> Generator[str, None, Finish]:
        most = self.options.max_tokens
        most_left = None if most is None else most - len(answer.tokens)
        generation = self.engine.generate(self.sampling, most_left)
        try:
            yield from answer.extend(clock.timed(generation))
        finally:
            generation.close()
        finish = "stop" if answer.stopped else generation.finish
        assert finish is not None
        return finish


def reserve(capacity: int, max_tokens: int | None) -> int:
    """Tokens that are kept free for an answer where turns can leave: a quarter of the context at
    most."""
    most = max(capacity // 4, 1)
    return most if max_tokens is None else min(max_tokens, most)


class _Clock:
    """The ``seconds`` that an iterator took by itself, without what was done with its items
    meanwhile."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, items: Iterable[int]) -> Iterator[int]:
        start = time.perf_counter()
        for item in items:
            self.seconds += time.perf_counter() - start
            yield item
            start = time.perf_counter()
        self.seconds += time.perf_counter() - start


def with_documents(documents: Iterable[str], question: str) -> str:
    """One user turn: the documents, each with at least one line break after it, the question."""
    return (
        "".join(text if text.endswith("\n") else f"{text}\n" for text in documents)
        + question
    )
