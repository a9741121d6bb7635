"""Messages between two processes: JSON in frames (u32 length, then the text), errors among them.

Nothing that arrives is unpickled.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from ggext.errors import GgextError, ModelError, first_line

_LENGTH = struct.Struct("<I")
_LARGEST = 1 << 30  # bytes of a frame


class Channel:
    """Frames of JSON over two binary streams. Any thread may send, one receives."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Raises OSError where the other side is gone."""
        self.write(frame(message))

    def write(self, data: bytes) -> None:
        """Sends a frame that is made already."""
        rest = memoryview(data)
        with self._lock:
            while rest:
                rest = rest[self._outgoing.write(rest) :]

    def receive(self) -> Any | None:
        """The next message, None at the end. Raises ValueError for what is no frame."""
        head = self._exactly(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > _LARGEST:
            raise ValueError(f"a frame of {length} bytes")
        body = self._exactly(length)
        return None if body is None else json.loads(body)

    def end(self) -> None:
        """Nothing more is sent."""
        with suppress(OSError):
            self._outgoing.close()

    def close(self) -> None:
        self.end()
        with suppress(OSError):
            self._incoming.close()

    def _exactly(self, count: int) -> bytearray | None:
        data = bytearray()
        while len(data) < count:
            part = self._incoming.read(min(count - len(data), 1 << 20))
            if not part:
                return None
            data += part
        return data


def frame(message: Any) -> bytes:
    """A message as it is sent."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    return _LENGTH.pack(len(body)) + body


def result_of(reply: Any) -> Any:
    """What a reply says: a result, or an error, which is raised."""
    if "error" in reply:
        raise error_of(reply["error"])
    return reply["result"]


def error_as_json(error: BaseException) -> dict[str, Any]:
    """An error, for `error_of` in another process."""
    known = isinstance(error, GgextError)
    facts = {name: value for name, value in vars(error).items() if _is_plain(value)}
    return {
        "name": type(error).__name__ if known else ModelError.__name__,
        "message": str(error)
        if known
        else f"{type(error).__name__}: {first_line(error)}",
        "facts": facts if known else {},
    }


def error_of(saved: Mapping[str, Any]) -> GgextError:
    """The GgextError that `error_as_json` described; a ModelError where its class is not known."""
    kinds = {kind.__name__: kind for kind in _all_kinds(GgextError)}
    kind = kinds.get(str(saved.get("name")), ModelError)
    error = kind.__new__(kind)
    error.args = (str(saved.get("message")),)
    vars(error).update(saved.get("facts") or {})
    return error


def _all_kinds(kind: type[GgextError]) -> list[type[GgextError]]:
    return [
        kind,
        *(below for each in kind.__subclasses__() for below in _all_kinds(each)),
    ]


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
