"""The child of `ggext.runtime.isolated`: llama.cpp, driven by what comes over the channel."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ggext.errors import GgextError, ModelError
from ggext.runtime import wire
from ggext.runtime.answering import End, Happening, Mailbox
from ggext.runtime.channel import Channel, error_as_json
from ggext.runtime.host import Host

_STEP = 0.01  # of a model, between two reports of its loading


def serve(channel: Channel) -> None:
    """Until the parent closes the channel, or asks for an orderly end."""
    server = _Server(channel)
    while (message := channel.receive()) is not None:
        if message["call"] == "close":
            server.close()
            return
        server.take(message)


class _Outbox(Mailbox):
    """The parcels of one answer, sent to the parent."""

    def __init__(self, server: _Server, number: int) -> None:
        super().__init__()
        self._server = server
        self._number = number
        self._lock = threading.Lock()
        self._waiting = 0

    def put(self, parcel: list[Happening]) -> bool:
        with self._lock:
            self._waiting += 1
        self._server.happened(self._number, parcel)
        if isinstance(parcel[-1], End):
            self._server.ended(self._number)
        return True

    def taken(self, count: int) -> None:
        """The parent's reader has taken so many parcels."""
        with self._lock:
            self._waiting -= count

    def waiting(self) -> int:
        return self._waiting


class _Server:
    """Calls are started in their order by one thread, so that a cancel is seen during a long
    one."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._host: Host | None = None
        self._failure: BaseException = ModelError("no model is open")
        self._calls: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._answers: dict[int, tuple[Callable[[], None], _Outbox]] = {}
        self._current = 0
        self._cancelled: set[int] = set()
        self._known: set[int] = set()
        self._thread = threading.Thread(
            target=self._work, name="ggext calls", daemon=True
        )
        self._thread.start()

    def take(self, message: dict[str, Any]) -> None:
        """Does what a message says, or leaves it to the thread."""
        if message["call"] == "cancel":
            self._cancel(message["id"])
        elif message["call"] == "taken":
            self._taken(message["id"], message["count"])
        else:
            self._calls.put(message)

    def close(self) -> None:
        """Ends what runs, and frees everything."""
        with self._lock:
            self._cancelled.add(self._current)
        self._calls.put(None)
        self._thread.join()
        if self._host is not None:
            self._host.close()

    def send(self, number: int, kind: str, value: Any) -> None:
        """Sends one reply to a call."""
        with suppress(
            OSError, ValueError
        ):  # a parent that is gone takes this process with it
            self._channel.send({"id": number, kind: value})

    def happened(self, number: int, parcel: list[Happening]) -> None:
        """Sends a parcel of an answer, and the text of tokens that the parent has not seen."""
        assert self._host is not None
        model = self._host.model
        news = []
        for token in parcel:
            if type(token) is int and token not in self._known:
                self._known.add(token)
                news.append((token, model.token_to_piece(token).decode("latin-1")))
        message = {"id": number, "happened": wire.parcel_as_json(parcel)}
        with suppress(OSError, ValueError):
            reply = message | {"pieces": news} if news else message
            self._channel.send(reply)

    def ended(self, number: int) -> None:
        """Forgets an answer."""
        with self._lock:
            self._answers.pop(number, None)

    def _taken(self, number: int, count: int) -> None:
        with self._lock:
            answer = self._answers.get(number)
        if answer is not None and self._host is not None:
            answer[1].taken(count)
            self._host.wake()

    def _cancel(self, number: int) -> None:
        with self._lock:
            answer = self._answers.get(number)
            if answer is None and number >= self._current:
                self._cancelled.add(number)
        if answer is not None:
            answer[0]()

    def _work(self) -> None:
        """The thread: one call after the other, until None."""
        while (message := self._calls.get()) is not None:
            number = message["id"]
            with self._lock:
                self._current = number
            try:
                self._do(number, message)
            except Exception as error:  # noqa: BLE001 - raised in the parent
                self.send(number, "error", error_as_json(error))
            with self._lock:
                self._current = number + 1
                self._cancelled.discard(number)

    def _do(self, number: int, message: dict[str, Any]) -> None:
        call = message["call"]
        if call == "open":
            self.send(number, "result", self._open(number, message))
            return
        host = self._host
        if host is None:
            raise self._failure
        if call == "ask":
            self._ask(host, number, message)
        elif call in ("save", "restore"):
            self._keep(host, number, call, Path(message["path"]))
        else:
            self.send(number, "result", _VOCABULARY[call](host, message))

    def _open(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        reported = 0.0

        def progress(fraction: float) -> bool:
            nonlocal reported
            if fraction >= reported + _STEP or fraction == 1:
                reported = fraction
                self.send(number, "loaded", fraction)
            return number not in self._cancelled

        try:
            host = Host(wire.opening_of(message["opening"]), progress)
            facts = wire.facts_of(host)
            _check_same(host.model.path, message.get("facts"), facts)
        except GgextError as error:
            self._failure = error
            raise
        self._host = host
        return facts

    def _ask(self, host: Host, number: int, message: dict[str, Any]) -> None:
        question = wire.question_of(message["question"])
        outbox = _Outbox(self, number)
        with (
            self._lock
        ):  # an end that comes at once waits until there is something to forget
            cancel = host.start(question, outbox)
            self._answers[number] = cancel, outbox
            cancelled = number in self._cancelled
        if cancelled:
            cancel()

    def _keep(self, host: Host, number: int, call: str, path: Path) -> None:
        """Saves or restores in the worker, after the answers that are on their way."""
        errand = host.saving(path) if call == "save" else host.restoring(path)

        def work() -> Generator[Happening, None, None]:
            try:
                self.send(number, "result", errand())
            except Exception as error:  # noqa: BLE001 - raised in the parent
                self.send(number, "error", error_as_json(error))
            yield End("eog")

        host.run(work)


def _check_same(path: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Tokens of one file mean nothing to another that took its place."""
    if before is not None and before["vocabulary"] != now["vocabulary"]:
        raise ModelError(
            f"{path} is another file than when it was opened: open it again"
        )


def _tokenize(host: Host, message: dict[str, Any]) -> list[int]:
    return host.model.tokenize(
        message["text"], add_special=message["special"], parse_special=message["parse"]
    )


def _controls(host: Host, message: dict[str, Any]) -> list[int]:
    last = min(message["end"], host.model.n_vocab)
    return [
        token for token in range(message["start"], last) if host.model.is_control(token)
    ]


_VOCABULARY: dict[str, Callable[[Host, dict[str, Any]], Any]] = {
    "tokenize": _tokenize,
    "controls": _controls,
    "piece": lambda host, message: host.model.token_to_piece(message["token"]).decode(
        "latin-1"
    ),
    "text": lambda host, message: host.model.token_text(message["token"]),
}
