"""A model, its contexts and the worker over them as one thing, in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ggext.errors import UsageError
from ggext.runtime import auto, store
from ggext.runtime.answering import Answering, Mailbox, Question
from ggext.runtime.auto import Chosen
from ggext.runtime.closing import Closing
from ggext.runtime.context import SessionOptions
from ggext.runtime.engine import Session
from ggext.runtime.loading import LoadProgress
from ggext.runtime.model import Model
from ggext.runtime.prefixes import Prefixes, PrefixOptions
from ggext.runtime.worker import Work, Worker


@dataclass(frozen=True)
class Opening:
    """What a host opens, and how."""

    # The GGUF file.
    path: Path
    # How each context is made.
    session: SessionOptions = field(default_factory=SessionOptions)
    # Layers on a GPU; None: as many as the library can.
    gpu_layers: int | None = None
    # Contexts, each of which makes one answer at a time.
    parallel: int = 1
    # How much is kept of texts that left a context for another one.
    cache: PrefixOptions = field(default_factory=PrefixOptions)
    # Whether the policy for a full context is chosen by `ggext.runtime.auto`.
    auto: bool = False


class TextVocabulary(Protocol):
    """What a prompt needs of `ggext.runtime.model.Model`."""

    @property
    def chat_template(self) -> str | None: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    def tokenize(
        self, text: str, *, add_special: bool = ..., parse_special: bool = ...
    ) -> list[int]: ...
    def token_to_piece(self, token: int) -> bytes: ...
    def token_text(self, token: int) -> str: ...
    def is_control(self, token: int) -> bool: ...


class Vocabulary(TextVocabulary, Protocol):
    """What text needs of a model, here or in another process; see `ggext.runtime.model.Model`."""

    @property
    def path(self) -> Path: ...
    @property
    def n_ctx_original(self) -> int: ...


class Engine(Protocol):
    """A model that answers, here or in another process. ``context`` and ``limit`` (None: text of
    any length is taken) in tokens; ``notices``: sentences that the user should read; ``chosen``:
    what leaves a full context, where that was left to the program."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def context(self) -> int: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def notices(self) -> tuple[str, ...]: ...
    @property
    def chosen(self) -> Chosen | None: ...
    def ask(self, question: Question) -> Answering: ...
    def save(self, path: Path) -> int: ...
    def restore(self, path: Path) -> int: ...
    def close(self) -> None: ...


class Host(Closing):
    """An `Engine` in this process. ``progress``: see `Model.open`. Raises GgextError."""

    def __init__(self, opening: Opening, progress: LoadProgress | None = None) -> None:
        self.model = Model.open(opening.path, opening.gpu_layers, progress)
        try:
            self.model.vocabulary()  # raises where there is none
            self._prefixes = Prefixes(opening.cache)
            first, self.chosen = self._first(opening)
            sessions = [first] + [
                Session(self.model, first.options, self._prefixes)
                for _ in range(1, opening.parallel)
            ]
        except BaseException:
            self.model.close()
            raise
        self._worker = Worker(sessions)
        self.context = sessions[0].n_ctx
        self.limit = sessions[0].memory.limit
        self.notices = sessions[0].notices

    def _first(self, opening: Opening) -> tuple[Session, Chosen | None]:
        """The first context; how it was chosen what leaves a full one, if it was."""
        if not opening.auto:
            return Session(self.model, opening.session, self._prefixes), None
        return auto.open_session(self.model, opening.session, self._prefixes)

    @property
    def vocabulary(self) -> Model:
        """The model, for text."""
        return self.model

    def close(self) -> None:
        """Cancels what runs and frees everything. Further calls do nothing."""
        self._worker.close()
        self._prefixes.close()
        self.model.close()

    def ask(self, question: Question) -> Answering:
        """Starts an answer, which waits for its turn. Raises ModelError once closed, or in another
        process."""
        return self._worker.ask(question)

    def start(self, question: Question, mailbox: Mailbox) -> Callable[[], None]:
        """See `Worker.start`."""
        return self._worker.start(question, mailbox)

    def wake(self) -> None:
        """See `Worker.wake`."""
        self._worker.wake()

    def save(self, path: Path) -> int:
        """Writes the cache of the answer that was made last; the bytes of the file. Waits for
        answers that are on their way. Raises UsageError with several contexts, StateError,
        OutputError."""
        return self._worker.do(self._only_session(), self.saving(path))

    def restore(self, path: Path) -> int:
        """Fills the cache from a file of `save`; the tokens in it. Raises StateError, after which
        the cache is empty."""
        return self._worker.do(self._only_session(), self.restoring(path))

    def saving(self, path: Path) -> Callable[[], int]:
        """`save` as what is left to be done by the worker."""
        session = self._only_session()
        return lambda: store.save(path, session, store.session_key(session))

    def restoring(self, path: Path) -> Callable[[], int]:
        """`restore` as what is left to be done by the worker."""
        session = self._only_session()
        return lambda: store.restore(path, session, store.session_key(session))

    def run(self, work: Work) -> None:
        """Has the worker do something with the only session, without waiting for it."""
        self._worker.run(self._only_session(), work)

    def _only_session(self) -> Session:
        sessions = self._worker.sessions
        if len(sessions) > 1:
            raise UsageError(
                f"with parallel={len(sessions)} contexts no single cache is the conversation's: "
                "take 1"
            )
        return sessions[0]
