"""The child process that renders chat templates: requests come in on the standard input, replies go
out on the standard output.

Started by `ggext.chat.renderer`. A frame is its length in bytes (4, big-endian) and those bytes.
The child limits its own memory and CPU time before each request, where the system can (`resource`);
the parent watches the clock everywhere. It ends with the end of its input, so it never outlives its
host.
"""

from __future__ import annotations

import json
import marshal
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

    from ggext.chat.sandbox import Sandbox

_HEADER = 4
# Bytes that a child may take in addition to what it has when it is ready, for a short text.
_MEMORY = 160 << 20
_COPIES = (
    16  # of the text, of four bytes a character at worst: what a template makes of it
)
_KEPT = 8  # compiled templates


def write_frame(file: IO[bytes], data: bytes) -> None:
    """Writes one frame."""
    file.write(len(data).to_bytes(_HEADER, "big"))
    file.write(data)
    file.flush()


def read_frame(file: IO[bytes], most: int) -> bytes | None:
    """Reads one frame; None at the end, or for one of more than ``most`` bytes."""
    header = file.read(_HEADER)
    size = int.from_bytes(header, "big")
    if len(header) < _HEADER or size > most:
        return None
    data = file.read(size)
    return data if len(data) == size else None


def packed_reply(reply: dict[str, Any]) -> bytes:
    """A reply as the parent may read it: a text as it is, all else as JSON."""
    if "text" in reply:
        return b"T" + str(reply["text"]).encode("utf-8", "surrogatepass")
    return b"J" + json.dumps(reply).encode("ascii")


def unpacked_reply(data: bytes | None) -> dict[str, Any] | None:
    """The reply of a child, which a template may have got hold of; None for what is none."""
    try:
        if data is None or data[:1] not in (b"T", b"J"):
            return None
        if data[:1] == b"T":
            return {"text": data[1:].decode("utf-8", "surrogatepass")}
        reply = json.loads(data[1:])
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) else None


def serve() -> None:
    """Answers requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process: see `_Limits`
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    import ggext.chat.sandbox  # noqa: F401 - slow to import: before the clock runs

    limits = _Limits()
    templates: dict[str, tuple[Sandbox, Template]] = {}
    write_frame(replies, packed_reply({"ready": True}))
    while (data := read_frame(requests, 1 << 31)) is not None:
        request = marshal.loads(
            data
        )  # the host's own: a dict of texts, numbers and lists
        limits.set(request["seconds"], request["characters"])
        reply, healthy = _reply(templates, request)
        limits.lift()
        write_frame(replies, packed_reply(reply))
        if not healthy:
            return


def _reply(
    templates: dict[str, Any], request: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The reply, and whether the process is fit for another request; one that is not says so, for
    it has not ended yet when the reply arrives."""
    from jinja2.exceptions import (
        SecurityError,
        TemplateError,
        TemplateSyntaxError,
        UndefinedError,
    )

    try:
        return _done(templates, request), True
    except TemplateSyntaxError as error:
        return {
            "error": "syntax",
            "line": error.lineno,
            "message": _line(error.message),
        }, True
    except SecurityError as error:
        return {"error": "limit", "message": _line(error)}, True
    except UndefinedError as error:
        return {"error": "fails", "message": _line(error)}, True
    except TemplateError as error:
        return {"error": "refusal", "message": _line(error)}, True
    except MemoryError:
        templates.clear()
        message = "more memory than any chat needs"
        return {"error": "limit", "message": message, "last": True}, False
    # A template can raise whatever Python raises: division by zero, recursion, a wrong type.
    except Exception as error:  # noqa: BLE001
        name = type(error).__name__
        return {"error": "fails", "message": f"{name}: {_line(error)}"}, True


def _done(templates: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    from ggext.chat.sandbox import Sandbox

    key = request["key"]
    if "source" in request:
        sandbox = Sandbox(request["most"])
        templates[key] = sandbox, sandbox.from_string(request["source"])
        for oldest in list(templates)[:-_KEPT]:
            del templates[oldest]
    if key not in templates:
        return {"unknown": True}
    if "values" not in request:
        return {"compiled": True}
    sandbox, template = templates[key]
    sandbox.max_text = request["most"]
    return {"text": _joined(template.generate(**request["values"]), request["most"])}


def _joined(pieces: Iterable[str], limit: int) -> str:
    from ggext.chat.sandbox import LimitError

    texts: list[str] = []
    length = 0
    for piece in pieces:
        texts.append(piece)
        length += len(piece)
        if length > limit:
            raise LimitError(f"a prompt of more than {limit} characters")
    return "".join(texts)


class _Limits:
    """Memory and CPU time of one request, as far as the system has such limits."""

    def __init__(self) -> None:
        try:
            import resource
        except ImportError:  # Windows: the sandbox's own checks, and the parent's clock
            self._resource: Any = None
        else:
            self._resource = resource
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._base = _address_space()

    def set(self, seconds: float, characters: int) -> None:
        """For a request over a text of so many characters."""
        if self._resource is None:
            return
        signal.setitimer(
            signal.ITIMER_PROF, seconds
        )  # of CPU time: a busy machine costs none
        if self._base is not None:
            self._soft("RLIMIT_AS", self._base + _MEMORY + _COPIES * characters)

    def lift(self) -> None:
        """Until the next request."""
        if self._resource is not None:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._soft("RLIMIT_AS", self._resource.RLIM_INFINITY)

    def _soft(self, name: str, value: int) -> None:
        with suppress(OSError, ValueError):
            kind = getattr(self._resource, name)
            hard = self._resource.getrlimit(kind)[1]
            if hard != self._resource.RLIM_INFINITY:
                value = (
                    hard if value == self._resource.RLIM_INFINITY else min(value, hard)
                )
            self._resource.setrlimit(kind, (value, hard))


def _address_space() -> int | None:
    """Bytes that the process has mapped; None where the system does not say it."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _line(message: object) -> str:
    """One printable line of at most 200 characters: the words may be the template's own."""
    words = " ".join(str(message)[:2000].split())
    return (
        "".join(c if c.isprintable() else "?" for c in words)[:200] or "no reason given"
    )
