"""A model to talk to, for programs: text in, text out, from any thread. ``from ggext import
Model``.

Nothing is printed; the module's logger says when text leaves a context. Above it stand no other
parts of ggext; below it `ggext.chat` makes prompts and `ggext.runtime` runs them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ggext.arguments import check, check_count, check_fields
from ggext.chat.answer import AnswerText
from ggext.chat.conversation import ChatOptions, Finish, reserve
from ggext.chat.messages import Messages, answerable, sampling_of, stops_of, turns_of
from ggext.chat.prompt import Prompts, behind_system
from ggext.chat.reply import Events, Reading, Reasoning, ReplyEvent, Text
from ggext.chat.template import TemplateChoice
from ggext.chat.transcript import Turn
from ggext.errors import ContextFullError, UsageError
from ggext.runtime.answering import Answering, Event, Question
from ggext.runtime.closing import Closing
from ggext.runtime.engine import Prefill, Sampling, SessionOptions
from ggext.runtime.host import Engine, Host, Opening
from ggext.runtime.isolated import IsolatedHost
from ggext.runtime.memory.options import WhenFull
from ggext.runtime.prefixes import PrefixOptions

__all__ = [
    "Model",
    "Reading",
    "Reasoning",
    "Reply",
    "ReplyEvent",
    "Settings",
    "Text",
    "Turn",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a `Model` runs."""

    # Its `n_ctx` and `memory.when_full` are the model's own arguments.
    session: SessionOptions = field(default_factory=SessionOptions)
    # None: as many as the library can.
    gpu_layers: int | None = None
    # Answers that are made at a time, each with a context of its own.
    parallel: int = 1
    # Another chat template than the file's, and what it is asked for
    # (`TemplateChoice(options={"reasoning_effort": "high"})`).
    template: TemplateChoice = field(default_factory=TemplateChoice)
    # How much is kept of conversations that had to leave their context for another.
    cache: PrefixOptions = field(default_factory=PrefixOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.parallel <= 256:
            raise UsageError(f"parallel is {self.parallel}, but must be from 1 to 256")


class Model(Closing):
    """A GGUF file, loaded. Threads may share it; close it when done, or use it in a `with` block.

    ``context``: tokens, or "auto": what the file is made for, or less where the free memory does
    not hold it. ``when_full``: what happens when a conversation outgrows that: "stop" raises
    ContextFullError, "turns" leaves whole oldest turns out, "auto" chooses for a chat without an
    end, by the model and the machine (the attribute ``when_full`` then is what it chose), the
    others are `ggext.runtime.memory`'s. ``isolated``: llama.cpp runs in a process of its own, whose
    death is an EngineDiedError here and not the end of this one; the next call starts another.
    Raises GgextError.

    >>> from ggext import Model, Sampling
    >>> question = {"role": "user", "content": "Tom hides the map below. Where is the map?"}
    >>> with Model("demo.gguf") as model:
    ...     for piece in model.chat([question], sampling=Sampling(temperature=0)):
    ...         print(piece, end="")
    Look for the map below.

    An answer that is JSON of a schema:

    >>> import json
    >>> from ggext import json_grammar
    >>> properties = {"found": {"type": "boolean"}}
    >>> schema = {"type": "object", "properties": properties, "required": ["found"]}
    >>> with Model("demo.gguf") as model:
    ...     reply = model.chat([question], sampling=Sampling(seed=1, grammar=json_grammar(schema)))
    ...     sorted(json.loads(reply.text()))
    ['found']
    """

    def __init__(
        self,
        path: str | Path,
        context: int | Literal["auto"] = "auto",
        when_full: WhenFull | Literal["turns", "auto"] = "stop",
        settings: Settings | None = None,
        load_progress: Callable[[float], bool] | None = None,
        isolated: bool = False,
    ) -> None:
        check("path", path, str | Path)
        check("context", context, int | Literal["auto"])
        if context != "auto":
            check_count("context", context)
        check("when_full", when_full, Literal["turns", "auto", *get_args(WhenFull)])
        check("settings", settings, Settings | None)
        check("load_progress", load_progress, Callable[..., Any] | None)
        check("isolated", isolated, bool)
        settings = settings or Settings()
        policy: Any = "stop" if when_full in ("turns", "auto") else when_full
        memory = replace(settings.session.memory, when_full=policy)
        n_ctx = None if context == "auto" else context
        session = replace(settings.session, n_ctx=n_ctx, memory=memory)
        opening = Opening(
            Path(path),
            session,
            settings.gpu_layers,
            settings.parallel,
            settings.cache,
            when_full == "auto",
        )
        host = IsolatedHost if isolated else Host
        self._engine: Engine = host(opening, load_progress)
        try:
            self._prompts = Prompts(self._engine.vocabulary, template=settings.template)
        except BaseException:
            self._engine.close()
            raise
        self.context = self._engine.context
        chosen = self._engine.chosen
        self.when_full = when_full if chosen is None else chosen.policy
        if chosen is not None:
            _log.info("%s: %s", path, chosen.sentence)
        for notice in self._engine.notices:
            _log.warning("%s: %s", path, notice)

    def close(self) -> None:
        """Cancels what runs and frees everything. Further calls do nothing."""
        self._engine.close()

    @property
    def path(self) -> Path:
        """The file."""
        return self._engine.vocabulary.path

    @property
    def trained(self) -> int:
        """Tokens that the model was trained on, before any extension."""
        return self._engine.vocabulary.n_ctx_original

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        check("text", text, str)
        return self._prompts.count(text)

    def count_chat(self, messages: Messages) -> int:
        """Tokens of the prompt that a conversation makes, its template and the opening of the
        answer included; ``context`` is how many there may be. Nothing is evaluated. Raises
        UsageError, TemplateError."""
        return len(self._prompts.tokens(turns_of(messages)))

    def chat(
        self,
        messages: Messages,
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        think: bool | None = None,
        cancel: Event | None = None,
    ) -> Reply:
        """The answer to a conversation, as it is made: for a `for` or an `async for` loop.

        ``messages``: each with a ``role`` (system, user, assistant) and a ``content``;
        `Reply.message` is one; a text alone is one user message. ``sampling``: a `Sampling`, or a
        dict of its fields. Only what differs from the conversation before is evaluated.
        ``max_tokens``: of the answer and its reasoning; 0 reads the conversation and answers
        nothing. ``stop``: texts that end the answer in front of them. ``think``: whether a model
        that can should reason first (None: as its template does by itself); with a grammar in
        ``sampling`` it does not. ``cancel``: an event; once it is set, the answer ends.

        Raises ContextFullError, before anything is read, where the conversation does not fit;
        UsageError for messages that are none, TemplateError.
        """
        options = ChatOptions(max_tokens=max_tokens, stop=stops_of(stop), think=think)
        sampling = sampling_of(sampling)
        thinks = False if sampling.grammar is not None else think
        prompts = self._prompts.thinking(thinks)
        turns = turns_of(messages)
        answerable(turns)
        dropped: tuple[Turn, ...] = ()
        if self.when_full == "turns":
            tokens, count = prompts.fitted(
                turns, self.context, reserve(self.context, max_tokens)
            )
            dropped = tuple(behind_system(turns)[:count])
        else:
            tokens = prompts.tokens(turns)
        if dropped:
            message = "%s: the context was full: the %d oldest turns left it"
            _log.warning(message, self.path, len(dropped))
        inside = prompts.opens_reasoning(tokens)
        answer = AnswerText(self._engine.vocabulary, prompts.tags, inside, options.stop)
        return self._reply(
            Question(tokens, sampling, max_tokens), answer, cancel, dropped
        )

    def complete(
        self,
        prompt: str,
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        special: bool = False,
        cancel: Event | None = None,
    ) -> Reply:
        """How the model continues a text, without a chat template: for base models, and for prompts
        of one's own.

        ``special``: control tokens that are spelled out in the prompt are meant as such
        (`<|fim_prefix|>`); never for a stranger's text. The others, and what is raised: see `chat`.
        """
        check("prompt", prompt, str)
        options = ChatOptions(max_tokens=max_tokens, stop=stops_of(stop))
        tokens = self._engine.vocabulary.tokenize(prompt, parse_special=special)
        answer = AnswerText(self._engine.vocabulary, stop=options.stop)
        return self._reply(
            Question(tokens, sampling_of(sampling), max_tokens), answer, cancel
        )

    def save_cache(self, path: str | Path) -> int:
        """Writes the KV cache of the conversation that was answered last, so that it need not be
        read again after `restore_cache`; the bytes of the file. Waits for answers that are on their
        way. Raises StateError where tokens have left the context, UsageError with ``parallel``
        contexts, OutputError."""
        check("path", path, str | Path)
        return self._engine.save(Path(path))

    def restore_cache(self, path: str | Path) -> int:
        """Fills the cache from a file of `save_cache`; the tokens in it. The next `chat` evaluates
        what differs from them. Raises StateError, after which the cache is empty: for a file that
        is damaged or of another model, RoPE table, type of cache or version of llama-cpp-python."""
        check("path", path, str | Path)
        return self._engine.restore(Path(path))

    def _reply(
        self,
        question: Question,
        answer: AnswerText,
        cancel: Event | None,
        dropped: tuple[Turn, ...] = (),
    ) -> Reply:
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise UsageError(
                f"cancel is {cancel!r:.80}, but must be an event with is_set()"
            )
        count = len(question.tokens)
        limit = self._engine.limit
        if limit is not None and count > limit:
            raise ContextFullError(count, 0, limit)
        answering = self._engine.ask(question)
        answering.cancel_event = cancel
        if cancel is not None and cancel.is_set():
            answering.cancel()
        return Reply(answering, answer, dropped)


class Reply(Closing):
    """An answer on its way: its text, piece by piece. Leaving the loop, or dropping the reply, ends
    the answer.

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

    def __init__(
        self, answering: Answering, answer: AnswerText, dropped: tuple[Turn, ...]
    ) -> None:
        self._answering = answering
        self._answer = answer
        self._looped = False
        self.left = dropped
        """Turns that the model does not see: they did not fit (``when_full="turns"``)."""

    @property
    def finish(self) -> Finish | None:
        """Why the answer ended, None while it goes on: "eog" (the model ended it), "stop" (a stop
        string), "length" (``max_tokens``), "context" (it is full), "cancelled"."""
        ended = self._answering.finish
        return "stop" if ended is not None and self._answer.stopped else ended

    @property
    def prefill(self) -> Prefill | None:
        """What reading the prompt came to, None before that."""
        return self._answering.prefill

    @property
    def count(self) -> int:
        """Tokens so far, those of the reasoning included."""
        return self._answering.count

    @property
    def dropped(self) -> int:
        """Tokens that left the context for this answer (when_full="stream"...), at its end."""
        return self._answering.dropped

    @property
    def forgotten(self) -> int:
        """Tokens that no question brings back any more (`MemoryOptions.evicted_memory`)."""
        return self._answering.forgotten

    @property
    def reasoning(self) -> str:
        """The reasoning so far, without its tags."""
        return self._answer.reasoning

    @property
    def message(self) -> dict[str, str]:
        """The answer so far as a message, to go on with."""
        return Turn("assistant", self._answer.text, self._answer.reasoning).as_json()

    def events(self) -> Events:
        """All that happens, for one `for` or `async for` loop: Reading, Reasoning and Text. Raises
        UsageError for a second loop.

        >>> from ggext import Model, Sampling
        >>> question = {"role": "user", "content": "Tom hides the map below. Where is the map?"}
        >>> with Model("demo.gguf") as model:
        ...     events = list(model.chat([question], sampling=Sampling(temperature=0)).events())
        >>> events[0], events[-1]
        (Reading(done=0, total=15), Text(text='.'))
        """
        self._loop_once()
        return Events(self._answering, self._answer)

    def __iter__(self) -> Iterator[str]:
        return self._texts(self.events())

    async def __aiter__(self) -> AsyncIterator[str]:
        async for event in self.events():
            if isinstance(event, Text):
                yield event.text

    def text(self) -> str:
        """The whole answer, once it is there; what was iterated before included. May be called
        again; a loop that begins after it raises UsageError."""
        self._looped = True
        for _ in Events(self._answering, self._answer):
            pass
        return self._answer.text

    def __repr__(self) -> str:
        so_far = f"{self.count} tokens, {self.finish or 'more may come'}"
        return f"<Reply: {so_far}; loop over it, or text() waits for all of it>"

    def _loop_once(self) -> None:
        """Raises UsageError for a second loop, which would get nothing."""
        if self._looped:
            raise UsageError(
                "a reply can be looped over once; text() has the whole answer"
            )
        self._looped = True

    @staticmethod
    def _texts(events: Events) -> Iterator[str]:
        return (event.text for event in events if isinstance(event, Text))

    def cancel(self) -> None:
        """Ends the answer, from any thread; the model stays usable."""
        self._answering.cancel()

    close = cancel
