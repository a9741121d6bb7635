"""A model to talk to, for programs: text in, text out, from any thread. ``from ggext import Model``.

Nothing is printed; the module's logger says when text leaves a context. Above it stand no other parts of
ggext; below it `ggext.chat` makes prompts and `ggext.runtime` runs them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from ggext.chat.answer import AnswerText
from ggext.chat.conversation import reserve
from ggext.chat.prompt import Prompts, behind_system
from ggext.chat.reasoning import Thought
from ggext.chat.transcript import Role, Turn
from ggext.errors import UsageError
from ggext.runtime import engine
from ggext.runtime.closing import Closing
from ggext.runtime.engine import FinishReason, Prefill, Progress, Sampling, SessionOptions
from ggext.runtime.memory.options import WhenFull
from ggext.runtime.worker import Event, Question, Worker

__all__ = ["Model", "Reply"]

_log = logging.getLogger(__name__)
_ROLES = ("system", "user", "assistant")

Message = Mapping[str, str] | Turn


@dataclass(frozen=True)
class Settings:
    """How a `Model` runs. ``session``: see `ggext.runtime.engine.SessionOptions`; its ``n_ctx`` and
    ``memory.when_full`` are the model's own arguments. ``gpu_layers`` None: as many as the library can.
    ``parallel``: answers that are made at a time, each with a context of its own."""

    session: SessionOptions = field(default_factory=SessionOptions)
    gpu_layers: int | None = None
    parallel: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.parallel <= 256:
            raise UsageError(f"parallel is {self.parallel}, but must be from 1 to 256")


class Model(Closing):
    """A GGUF file, loaded. Threads may share it; close it when done, or use it in a `with` block.

    ``context``: tokens, or "auto": what the file is made for, or less where the free memory does not hold it.
    ``when_full``: what happens when a conversation outgrows that: "stop" raises ContextFullError, "turns" leaves
    whole oldest turns out, the others are `ggext.runtime.memory`'s. Raises GgextError.

    >>> from ggext import Model, Sampling
    >>> question = {"role": "user", "content": "Tom hides the map below. Where is the map?"}
    >>> with Model("demo.gguf") as model:
    ...     for piece in model.chat([question], sampling=Sampling(temperature=0)):
    ...         print(piece, end="")
    Look for the map below.
    """

    def __init__(
        self,
        path: str | Path,
        context: int | Literal["auto"] = "auto",
        when_full: WhenFull | Literal["turns"] = "stop",
        settings: Settings | None = None,
        load_progress: Callable[[float], bool] | None = None,
    ) -> None:
        settings = settings or Settings()
        self._drops_turns = when_full == "turns"
        memory = replace(settings.session.memory, when_full="stop" if when_full == "turns" else when_full)
        n_ctx = None if context == "auto" else context
        options = replace(settings.session, n_ctx=n_ctx, memory=memory)
        self._model = engine.Model.open(path, settings.gpu_layers, load_progress)
        try:
            self._prompts = Prompts(self._model)
            sessions = [engine.Session(self._model, options) for _ in range(settings.parallel)]
        except BaseException:
            self._model.close()
            raise
        self._worker = Worker(sessions)
        self.context = sessions[0].n_ctx
        for notice in sessions[0].notices:
            _log.warning("%s: %s", path, notice)

    def close(self) -> None:
        """Cancels what runs and frees everything. Further calls do nothing."""
        self._worker.close()
        self._model.close()

    @property
    def path(self) -> Path:
        """The file."""
        return self._model.path

    @property
    def trained(self) -> int:
        """Tokens that the model was trained on, before any extension."""
        return self._model.n_ctx_original

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self._model.tokenize(text, add_special=False))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        cancel: Event | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> Reply:
        """The answer to a conversation, as it is made: for a `for` or an `async for` loop.

        ``messages``: each with a ``role`` (system, user, assistant) and a ``content``. Only what differs from the
        conversation before is evaluated. ``cancel``: an event; once it is set, the answer ends. ``progress``: is
        called with tokens read and to read, by the thread that reads the answer. Raises UsageError for messages
        that are none, TemplateError; the loop raises ContextFullError.
        """
        turns = [_turn(message) for message in messages]
        tokens, left = self._prompt(turns, max_tokens)
        if left:
            _log.warning("%s: the context was full: the %d oldest turns left it", self.path, len(left))
        inside = self._prompts.opens_reasoning(tokens)
        answer = AnswerText(self._model, self._prompts.tags, inside)
        reply = Reply(self._worker, Question(tokens, sampling or Sampling(), max_tokens), answer)
        reply.left = left
        reply._answering.cancel_event = cancel
        reply._answering.progress = progress
        if cancel is not None and cancel.is_set():
            reply.cancel()
        return reply

    def _prompt(self, turns: list[Turn], max_tokens: int | None) -> tuple[list[int], tuple[Turn, ...]]:
        if not self._drops_turns:
            return self._prompts.tokens(turns), ()
        tokens, left = self._prompts.fitted(turns, self.context, reserve(self.context, max_tokens))
        return tokens, tuple(behind_system(turns)[:left])


class Reply(Closing):
    """An answer on its way: its text, piece by piece.

    ``finish`` says why it ended, None before that: "eog" (the model ended it), "length" (``max_tokens``),
    "context" (it is full), "cancelled". ``prefill`` counts what was read. ``left``: turns that were left out. What the
    model reasons before it answers is no part of the answer: ``reasoning`` has it, as far as it has come.

    >>> from ggext import Model, Sampling
    >>> question = {"role": "user", "content": "Tom hides the map below. Where is the map?"}
    >>> with Model("demo.gguf") as model:
    ...     reply = model.chat([question], sampling=Sampling(temperature=0))
    ...     text = reply.text()
    >>> text, reply.finish
    ('Look for the map below.', 'eog')

    In asyncio, without holding up the loop:

    >>> import asyncio
    >>> async def ask(model):
    ...     async for piece in model.chat([question], sampling=Sampling(temperature=0)):
    ...         print(piece, end="")
    >>> with Model("demo.gguf") as model:
    ...     asyncio.run(ask(model))
    Look for the map below.
    """

    left: tuple[Turn, ...] = ()

    def __init__(self, worker: Worker, question: Question, answer: AnswerText) -> None:
        self._answer = answer
        self._answering = worker.ask(question)

    @property
    def finish(self) -> FinishReason | None:
        """Why the answer ended, None while it goes on."""
        return self._answering.finish

    @property
    def prefill(self) -> Prefill | None:
        """What reading the prompt came to, None before that."""
        return self._answering.prefill

    @property
    def count(self) -> int:
        """Tokens so far."""
        return self._answering.count

    @property
    def reasoning(self) -> str:
        """The reasoning so far, without its tags."""
        return self._answer.reasoning

    def __iter__(self) -> Iterator[str]:
        yield from _said(self._answer.extend(self._answering))
        yield from _said(self._answer.end())

    async def __aiter__(self) -> AsyncIterator[str]:
        async for token in self._answering:
            for piece in _said(self._answer.extend([token])):
                yield piece
        for piece in _said(self._answer.end()):
            yield piece

    def text(self) -> str:
        """The whole answer, once it is there; what was iterated before included."""
        for _ in self:
            pass
        return self._answer.text

    def cancel(self) -> None:
        """Ends the answer, from any thread; the model stays usable."""
        self._answering.cancel()

    close = cancel


def _said(pieces: Iterator[str]) -> Iterator[str]:
    return (piece for piece in pieces if not isinstance(piece, Thought))


def _turn(message: Message) -> Turn:
    if isinstance(message, Turn):
        return message
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES or not isinstance(content, str):
        raise UsageError(f"a message needs a role ({', '.join(_ROLES)}) and a content, not {message!r:.80}")
    return Turn(cast(Role, role), content)
