"""llama.cpp in a process of its own: what ends it does not end this one.

`IsolatedHost` is a `ggext.runtime.host.Host` whose model is in a child process. A death of the
child (a signal, an abort inside ggml, memory that ran out) ends what it was asked with
EngineDiedError; the next call starts another child, which reads again what it needs, or restores
the cache that was saved or restored last.

Nothing of llama.cpp is loaded here, and what the child sends is JSON: see `ggext.runtime.child`.
"""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ggext.errors import GgextError, ModelError
from ggext.runtime import forks, wire
from ggext.runtime.answering import Answering, End, Mailbox, Question
from ggext.runtime.auto import Chosen
from ggext.runtime.channel import error_as_json, error_of
from ggext.runtime.child import Child
from ggext.runtime.closing import Closing
from ggext.runtime.host import Opening
from ggext.runtime.loading import LoadProgress
from ggext.runtime.model import CancelledError
from ggext.runtime.worker import CLOSED, OTHER_PROCESS

_SERVE = "ggext.runtime.isolated_child:serve"
#: Parcels of an answer that are read before the child hears of it.
_TAKEN_AT_ONCE = 64
_BLOCK = 8192  # tokens of a vocabulary that are asked for together
#: Seconds that a child has for what it is writing, when it is closed.
_PATIENCE = 60.0
_ANOTHER = "the next call starts another"


class _Reply:
    """What a call comes to, for the one thread that waits for it, if any. ``failed``: an error."""

    def __init__(self) -> None:
        self.failed = False
        self._messages: queue.SimpleQueue[dict[str, Any] | GgextError] = (
            queue.SimpleQueue()
        )

    def got(self, message: dict[str, Any]) -> bool:
        """Takes a message of the child; whether it is the last one."""
        self.failed = "error" in message
        self._messages.put(message)
        return "loaded" not in message

    def fail(self, error: GgextError) -> None:
        self.failed = True
        self._messages.put(error)

    def next(self) -> dict[str, Any]:
        """The next message. Raises the call's error."""
        message = self._messages.get()
        if isinstance(message, GgextError):
            raise message
        if "error" in message:
            raise error_of(message["error"])
        return message


class _Inbox(Mailbox):
    """The parcels of one answer, as they come from the child, and the text of tokens that it had
    not sent before."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        super().__init__()
        self._pieces = pieces

    def got(self, message: dict[str, Any]) -> bool:
        for token, piece in message.get("pieces", ()):
            self._pieces[token] = piece.encode("latin-1")
        if "error" in message:
            self.fail(error_of(message["error"]))
            return True
        parcel = wire.parcel_of(message["happened"])
        self.put(parcel)
        return isinstance(parcel[-1], End)

    def fail(self, error: GgextError) -> None:
        self.put([End("cancelled", error)])


class _Life:
    """One child from its start to its end, the thread that reads from it, and who waits for what.

    ``over``: the error that every further call gets.
    """

    def __init__(self, path: Path) -> None:
        self.over: GgextError | None = None
        self._path = path
        self._numbers = itertools.count(1)
        # An answer that is collected cancels, in whatever thread that happens.
        self._lock = threading.RLock()
        self._waiting: dict[int, _Reply | _Inbox] = {}
        self._closing = False
        started: queue.SimpleQueue[Child | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._read, args=(started,), name="ggext engine", daemon=True
        )
        self._thread.start()
        try:
            child = started.get()
        except BaseException:  # an interrupt
            self._closing = True
            child = started.get()
            if isinstance(child, Child):
                child.kill()
            raise
        if isinstance(child, BaseException):
            raise child
        self.child = child

    def call(self, waits: _Reply | _Inbox, call: str, **arguments: Any) -> int:
        """Sends a call, whose replies ``waits`` gets; its number. Raises `over`."""
        with self._lock:
            if self.over is not None:
                raise _copy(self.over)
            number = next(self._numbers)
            self._waiting[number] = waits
            self.child.send({"id": number, "call": call} | arguments)
        return number

    def tell(self, number: int, call: str, **arguments: Any) -> None:
        """Sends a word about a call, while it goes on."""
        with self._lock:
            if number in self._waiting:
                self.child.send({"id": number, "call": call} | arguments)

    def end(self, *, at_once: bool) -> None:
        """Ends the child, after what it is writing unless ``at_once``, and its thread."""
        self._closing = True
        if not at_once:
            self.child.send({"id": 0, "call": "close"})
            self._thread.join(_PATIENCE)
        self.child.kill()
        self._thread.join()

    def _read(self, started: queue.SimpleQueue[Child | BaseException]) -> None:
        """The thread: hands out what the child sends, until it sends no more.

        The child is started here, as Linux kills it with the thread that started it.
        """
        try:
            child = Child(_SERVE)
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            started.put(error)
            return
        started.put(child)
        try:
            while (message := child.receive()) is not None:
                self._hand_out(message)
        except Exception:  # noqa: BLE001 - a child that says what no child says
            child.kill()
        end = self._end_of(child)
        with self._lock:
            self.over = end
            waiting = tuple(self._waiting.values())
            self._waiting.clear()
        for waits in waiting:
            waits.fail(_copy(end))
        child.close()

    def _hand_out(self, message: dict[str, Any]) -> None:
        number = message["id"]
        with self._lock:
            waits = self._waiting.get(number)
        if waits is not None and waits.got(message):
            with self._lock:
                self._waiting.pop(number, None)

    def _end_of(self, child: Child) -> GgextError:
        death = child.died()
        if self._closing:
            return ModelError(CLOSED)
        death.args = (f"{self._path}: {death}; {_ANOTHER}",)
        return death


def _copy(error: GgextError) -> GgextError:
    """The error for one more who waits: an exception that is raised twice has both traces."""
    return error_of(error_as_json(error))


class _Connection:
    """The children of a host, one after the other. ``facts``: what the first said of the model."""

    def __init__(self, opening: Opening) -> None:
        self._path = opening.path
        self._opening = wire.opening_as_json(opening)
        self._forks = forks.count
        self._lock = threading.Lock()
        self._closed = False
        self._kept: Path | None = None
        self._reopening = _Reply()
        self.life = _Life(opening.path)
        self.facts: dict[str, Any] = {}

    def open(self, progress: LoadProgress | None) -> None:
        """Has the child load the model. Raises what `Host` raises."""
        reply = _Reply()
        number = self.life.call(reply, "open", opening=self._opening)
        cancelled = False
        while "result" not in (message := reply.next()):
            if (
                progress is not None
                and not cancelled
                and not progress(message["loaded"])
            ):
                cancelled = True
                self.life.tell(number, "cancel")
        if cancelled:  # it was loaded before the child heard of it
            raise CancelledError(f"loading {self._path} was cancelled")
        self.facts = message["result"]
        # Another child makes a context of the same size, whatever memory is free then.
        session = self._opening["session"]
        again = {"n_ctx": self.facts["context"], "leaves_memory": False}
        self._opening["session"] = session | again

    def living(self) -> _Life:
        """The child, or another one after its death. The other is given its work without waiting
        until it has read the model: it does things in their order."""
        if forks.count != self._forks:
            raise ModelError(OTHER_PROCESS)
        with self._lock:
            if self._closed:
                raise ModelError(CLOSED)
            if self.life.over is not None or self._reopening.failed:
                self.life.end(at_once=True)
                self.life = _Life(self._path)
                self._reopening = _Reply()
                self.life.call(
                    self._reopening, "open", opening=self._opening, facts=self.facts
                )
                if self._kept is not None:
                    self.life.call(_Reply(), "restore", path=str(self._kept))
            return self.life

    def request(self, call: str, **arguments: Any) -> Any:
        """Calls the child and waits for the result. Raises what it raises there."""
        reply = _Reply()
        self.living().call(reply, call, **arguments)
        return reply.next()["result"]

    def keep(self, call: str, path: Path) -> int:
        """``save`` or ``restore`` of a file that another child will begin with."""
        path = path.absolute()
        count = int(self.request(call, path=str(path)))
        self._kept = path
        return count

    def close(self, *, at_once: bool) -> None:
        """Ends the child, unless this is a fork of the process whose child it is."""
        with self._lock:
            self._closed = True
            if forks.count == self._forks:
                self.life.end(at_once=at_once)


class IsolatedHost(Closing):
    """A `ggext.runtime.host.Engine` whose model, contexts and worker are in a child process.
    ``progress``: see `Model.open`. Raises GgextError, also EngineDiedError."""

    def __init__(self, opening: Opening, progress: LoadProgress | None = None) -> None:
        self._connection = _Connection(opening)
        # Also at the interpreter's end, and where the host is dropped.
        self._stop = weakref.finalize(self, self._connection.close, at_once=True)
        try:
            self._connection.open(progress)
        except BaseException:
            self._stop()
            raise
        facts = self._connection.facts
        self.context: int = facts["context"]
        self.limit: int | None = facts["limit"]
        self.notices = tuple(facts["notices"])
        self.chosen = None if facts["chosen"] is None else Chosen(**facts["chosen"])
        self.vocabulary = IsolatedVocabulary(
            self._connection.request, facts["vocabulary"]
        )

    @property
    def pid(self) -> int:
        """The number of the child that lives now, or lived last."""
        return self._connection.life.child.pid

    def close(self) -> None:
        """Ends what runs, and the child. Further calls do nothing."""
        if self._stop.detach() is not None:
            self._connection.close(at_once=False)

    def ask(self, question: Question) -> Answering:
        """Starts an answer, which waits for its turn. Raises ModelError once closed, or in another
        process, and where another child cannot be started."""
        life = self._connection.living()
        inbox = _Inbox(self.vocabulary.pieces)
        number = life.call(inbox, "ask", question=wire.question_as_json(question))
        cancel = partial(life.tell, number, "cancel")
        return Answering(inbox, cancel, self._counter(life, number))

    def save(self, path: Path) -> int:
        """See `ggext.runtime.host.Host.save`; the file is what another child would begin with."""
        return self._connection.keep("save", path)

    def restore(self, path: Path) -> int:
        """See `ggext.runtime.host.Host.restore`; another child would begin with the file too."""
        return self._connection.keep("restore", path)

    def _counter(self, life: _Life, number: int) -> Callable[[], None]:
        """Counts the parcels of an answer that were read, and says so from time to time: the child
        stops making more for a reader that is slow. It keeps this object alive, as an
        answer may outlive the model's last name."""
        count = 0

        def taken(_host: IsolatedHost = self) -> None:
            nonlocal count
            count += 1
            if count == _TAKEN_AT_ONCE:
                count = 0
                life.tell(number, "taken", count=_TAKEN_AT_ONCE)

        return taken


class IsolatedVocabulary:
    """What text needs of the model. ``pieces``: the text of tokens that is known already."""

    def __init__(self, request: Callable[..., Any], facts: Mapping[str, Any]) -> None:
        self.path = Path(facts["path"])
        self.pieces: dict[int, bytes] = {}
        self.chat_template: str | None = facts["chat_template"]
        self.adds_bos: bool = facts["adds_bos"]
        self.bos: int = facts["bos"]
        self.eos: int = facts["eos"]
        self.n_vocab: int = facts["n_vocab"]
        self.n_ctx_original: int = facts["n_ctx_original"]
        self._request = request
        self._texts: dict[int, str] = {}
        self._controls: dict[int, frozenset[int]] = {}

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """See `ggext.runtime.model.Model.tokenize`."""
        tokens: list[int] = self._request(
            "tokenize", text=text, special=add_special, parse=parse_special
        )
        return tokens

    def token_to_piece(self, token: int) -> bytes:
        """The bytes that a token stands for, empty for control tokens; UTF-8 only when joined."""
        piece = self.pieces.get(token)
        if piece is None:
            piece = self.pieces[token] = self._request("piece", token=token).encode(
                "latin-1"
            )
        return piece

    def token_text(self, token: int) -> str:
        """How the vocabulary spells a token, control tokens included: ``<s>``."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._request("text", token=token)
        return text

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token, which no ordinary text becomes."""
        block = token // _BLOCK
        controls = self._controls.get(block)
        if controls is None:
            start = block * _BLOCK
            controls = frozenset(
                self._request("controls", start=start, end=start + _BLOCK)
            )
            self._controls[block] = controls
        return token in controls
