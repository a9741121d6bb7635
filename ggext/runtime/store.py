"""A session's KV cache in a file, so that a long text is not read twice.

The file: 8 bytes of magic, u32 CRC-32 of all that follows, u32 length of a JSON object, the object
(``key``; the counts ``tokens``, ``logits`` and ``state``; a digest of the RoPE table; ``gone``,
what has left the context; ``account``, what the policy tells of itself), then int32 tokens, float32
logits after the last of them, the bytes of ``llama_state_seq_get_data`` (of recurrent layers the
state before the last token), copies of such states at earlier places, and the policy's blocks
outside the cache, all of one size. Little-endian. It is written next to its place and renamed when
whole.

A file comes from a stranger: every count is held against the bytes that are there, and the state is
walked through before llama.cpp sees it. That what was restored is what was saved is measured: the
last token is evaluated again, and its logits are compared.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError, RopeError
from ggext.gguf.plain_files import open_plain, private_file
from ggext.gguf.rope import effective_table
from ggext.gguf.system import read_at
from ggext.gguf.writer import check_room, output_errors
from ggext.llama_cpp_facts.compressed import COMPRESSED
from ggext.runtime import llama
from ggext.runtime.checked_state import StateError, check_state, kind_of
from ggext.runtime.closing import Closing
from ggext.runtime.memory.base import Layout
from ggext.runtime.memory.gone import Gone
from ggext.runtime.reuse import TOLERANCE, apart
from ggext.runtime.state_copies import copies_of, described, read_copies

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.gguf.reader import GgufFile
    from ggext.runtime.engine import Session
    from ggext.runtime.regimes import Regime

_MAGIC = b"ggext\0K\2"
_HEAD = struct.Struct("<8sII")
_CHECKED_FROM = 12
_MAX_JSON = 1 << 16
_TABLE = "the RoPE table"
_FLASH = "the use of flash attention"
_SAMPLES, _SAMPLE = 64, 4096
_PART = 1 << 20  # bytes of one read


def fingerprint(header: GgufFile) -> str:
    """SHA-256, in hexadecimal, of a model file's header, its size, and 64 samples of 4 KiB spread
    evenly over its tensor data: a few milliseconds for a file of any size. It tells files apart
    that were made differently, not two that someone made alike on purpose."""
    digest = hashlib.sha256(f"{header.size}\n".encode())
    with header.path.open("rb") as file:
        digest.update(file.read(header.data_offset))
        span = max(header.size - header.data_offset - _SAMPLE, 0)
        for i in range(_SAMPLES):
            file.seek(header.data_offset + span * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def session_key(session: Session) -> dict[str, str]:
    """What must agree for a saved state to be of use, whatever text is in it."""
    model = fingerprint(session.model.header)
    if (
        session.adapter is not None
    ):  # with which the same tokens have other keys and values
        model += f" {hashlib.sha256(session.adapter.read_bytes()).hexdigest()}"
    return {
        "the model file": model,
        "the KV type": session.cache.kv_type,
        "the version of llama-cpp-python": llama.VERSION,
    }


def table_digest(header: GgufFile, regime: Regime) -> str:
    """SHA-256, in hexadecimal, of the frequencies and the gain that a context of the regime rotates
    by."""
    try:
        table = effective_table(header, regime.span, by_ggext=True)
    except RopeError as error:
        return f"unknown: {error}"
    values = [regime.freq_base or 0.0, *table.inv_freq, table.attention_factor]
    return hashlib.sha256(
        " ".join(float(value).hex() for value in values).encode()
    ).hexdigest()


def _check_kept(session: Session) -> None:
    """Raises StateError for a session of which the text alone is kept."""
    if not session.can_be_kept:
        policy = session.memory.options.when_full
        raise StateError(
            f"tokens have left the context, and of what {policy} makes of it only the text is kept"
        )
    if session.model.architecture in COMPRESSED:
        raise StateError(
            f"the cache of {session.model.architecture} has compressed tokens, a form that ggext "
            "does not keep: of a chat only the text is kept"
        )


def save(path: Path, session: Session, key: Mapping[str, str]) -> int:
    """Writes the session's cache; the bytes of the file. Raises OutputError, ModelError, and
    StateError for a model whose cache cannot be kept."""
    import numpy as np

    _check_kept(session)
    tokens = np.array(session.tokens, "<i4")
    cells = session.snapshot()
    logits = session.last_logits().astype("<f4")
    gone, account = session.memory.gone, session.memory.account()
    layout = session.memory.layout(len(tokens), gone, account)
    try:
        check_state(cells, _stored(layout, session), kind_of(session.model))
    except StateError as error:
        raise StateError(
            f"llama.cpp writes the cache of {session.model.architecture} in a form that ggext "
            f"does not know ({error}): of a chat only the text is kept"
        ) from None
    copies = copies_of(session.cache, cells.nbytes)
    counts = {"tokens": len(tokens), "logits": len(logits), "state": len(cells)}
    table = table_digest(session.model.header, session.cache.regime)
    aligned = {
        "tokens": session.cache.aligned,
        "batches": session.cache.batches.digest(),
    }
    facts = {
        "key": dict(key),
        _TABLE: table,
        _FLASH: session.cache.flash_attention,
        "gone": _gone_as_json(session),
        "account": account,
        "aligned": aligned,
        "copies": described(copies),
    }
    document = json.dumps(facts | counts).encode("ascii")
    parts: list[Any] = [
        struct.pack("<I", len(document)),
        document,
        tokens,
        logits,
        cells,
        *(copy.data for copy in copies),
    ]
    crc = size = 0
    for part in chain(
        parts, session.memory.blocks_outside()
    ):  # twice one at a time, rather than all at once
        crc, size = zlib.crc32(part, crc), size + memoryview(part).nbytes
    head = struct.pack("<8sI", _MAGIC, crc)
    check_room(path, len(head) + size)
    with output_errors(path), private_file(path) as file:
        file.write(head)
        for part in chain(parts, session.memory.blocks_outside()):
            file.write(part)
    return len(head) + size


def restore(path: Path, session: Session, key: Mapping[str, str]) -> int:
    """Fills the session's cache from a file; the tokens that are in it then. Raises StateError,
    after which nothing of the file is in the cache."""
    with _StateFile(path) as file:
        return _restored(file, session, key)


def _restored(file: _StateFile, session: Session, key: Mapping[str, str]) -> int:
    import numpy as np

    path = file.path
    document, at = _document(file)
    _check_key(document.get("key"), key)
    n_tokens, n_logits, n_state = (
        _count(path, document, name) for name in ("tokens", "logits", "state")
    )
    state_at = at + 4 * (n_tokens + n_logits)
    if state_at + n_state > file.size or n_logits != session.model.n_vocab:
        raise StateError(
            f"{path} is damaged: its counts do not fit its {file.size} bytes"
        )
    if n_tokens > session.memory.room:
        raise StateError(
            f"it has {n_tokens} tokens, more than the context of {session.memory.room}"
        )
    table = table_digest(session.model.header, session.cache.regime_of(n_tokens))
    _check_key(document, {_TABLE: table})
    if _FLASH in document:
        _check_key(document, {_FLASH: session.cache.flash_attention})
    gone = _gone_from_json(path, document.get("gone"), session, n_tokens)
    tokens = np.frombuffer(file.read(at, 4 * n_tokens), "<i4").tolist()
    logits = np.frombuffer(file.read(at + 4 * n_tokens, 4 * n_logits), "<f4")
    cells = np.frombuffer(file.read(state_at, n_state), np.uint8)
    account = document.get("account")
    try:
        layout = session.memory.layout(n_tokens, gone, account)
        end = state_at + n_state
        copies = read_copies(document.get("copies"), n_tokens, file.read, end)
        end += sum(copy.data.nbytes for copy in copies)
        blocks = _parts(file, end, layout.blocks)
        check_state(cells, _stored(layout, session), kind_of(session.model))
        session.restore(tokens, cells, layout.places, gone)
        session.memory.resume(account, blocks)
        _check_logits(session, logits)
        session.cache.checkpoints.prepend(copies)
        session.cache.aligned = _aligned(document.get("aligned"), session, n_tokens)
    except ModelError as error:
        raise StateError(str(error)) from error
    finally:
        if not session.cache.has_logits:  # nothing is left of what was not found good
            session.clear()
            session.cache.clear(wipe=True)
    return n_tokens


def _stored(layout: Layout, session: Session) -> Sequence[int]:
    """The positions of the cells that are in a file."""
    return layout.cells[:-1] if session.model.is_recurrent else layout.cells


def _aligned(saved: Any, session: Session, n_tokens: int) -> int:
    """How many of the first tokens were read in the batches that this session reads in; a file that
    says more than is true makes answers that differ in their last bits."""
    there = saved if isinstance(saved, dict) else {}
    count, batches = there.get("tokens"), session.cache.batches
    if not isinstance(count, int) or there.get("batches") != batches.digest():
        return 0
    return max(batches.ends(0, min(count, n_tokens - 1), session.n_batch), default=0)


def _parts(file: _StateFile, start: int, count: int) -> Iterator[memoryview]:
    """The bytes from `start` on in `count` parts of one size, none of them empty; each is read
    when it is asked for. Raises StateError."""
    rest = file.size - start
    size = rest // count if count else 0
    if size * count != rest or (count and not size):
        raise StateError(
            f"the saved state has {rest} bytes for {count} blocks that left the context"
        )
    return (memoryview(file.read(start + i * size, size)) for i in range(count))


def _gone_as_json(session: Session) -> dict[str, Any] | None:
    gone = session.memory.gone
    if not gone.count:
        return None
    window = session.memory.options.window
    return {"window": window} | gone.as_json()


def _gone_from_json(path: Path, saved: Any, session: Session, n_tokens: int) -> Gone:
    """What had left the context when the state was saved; only the same policy can go on from
    there."""
    if saved is None:
        return Gone()
    options, there = session.memory.options, saved if isinstance(saved, dict) else {}
    _check_key(
        {"what stays in a full context": there.get("window")},
        {"what stays in a full context": options.window},
    )
    try:
        gone = Gone.of_json(there)
    except ValueError:
        gone = Gone()
    if gone.start == options.sinks < n_tokens:
        return gone
    raise StateError(
        f"{path} is damaged: what had left the context is not described by it"
    )


class _StateFile(Closing):
    """A saved state that is read, not mapped: a disk that fails, or a file that is cut short
    meanwhile, would end the process. Raises StateError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._errors():
            self._handle = open_plain(path, follow=False)
            self.size = os.fstat(self._handle).st_size

    def read(self, start: int, length: int) -> bytearray:
        """`length` bytes of those from `start` on, which must be there."""
        data = bytearray(min(length, max(self.size - start, 0)))
        at = 0
        with self._errors(), memoryview(data) as view:
            while at < length:
                part = read_at(self._handle, min(length - at, _PART), start + at)
                if not part:
                    raise OSError(errno.EIO, "it is shorter than it was")
                view[at : at + len(part)] = part
                at += len(part)
        return data

    def checksum(self, start: int) -> int:
        """CRC-32 of the bytes from `start` on."""
        crc = 0
        for at in range(start, self.size, _PART):
            crc = zlib.crc32(self.read(at, min(_PART, self.size - at)), crc)
        return crc

    def close(self) -> None:
        os.close(self._handle)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"{self.path} cannot be read: {error.strerror or error}"
            ) from error


def _document(file: _StateFile) -> tuple[dict[str, Any], int]:
    """The JSON object, and the offset after it, of a file whose checksum is right."""
    head = bytes(file.read(0, _HEAD.size)) if file.size >= _HEAD.size else b""
    if not head.startswith(_MAGIC):
        raise StateError(f"{file.path} is not a saved state of this ggext")
    _, crc, length = _HEAD.unpack(head)
    end = _HEAD.size + length
    if length > _MAX_JSON or end > file.size or file.checksum(_CHECKED_FROM) != crc:
        raise StateError(f"{file.path} is damaged: its checksum is wrong")
    try:
        document = json.loads(file.read(_HEAD.size, length))
    except (ValueError, RecursionError) as error:
        raise StateError(f"{file.path} is damaged: its head is not JSON") from error
    return (document if isinstance(document, dict) else {}), end


def _count(path: Path, document: Mapping[str, Any], name: str) -> int:
    count = document.get(name)
    if not isinstance(count, int) or count <= 0:
        raise StateError(f"{path} is damaged: its number of {name} is {count!r:.40}")
    return count


def _check_key(saved: Any, now: Mapping[str, str | bool]) -> None:
    there = saved if isinstance(saved, dict) else {}
    for name, value in now.items():
        if there.get(name) != value:
            raise StateError(f"{name} is another one than when the state was saved")


def _check_logits(session: Session, saved: NDArray[np.float32]) -> None:
    session.reread_last()
    difference = apart(session.last_logits(), saved)
    if not difference <= TOLERANCE:
        session.clear()
        raise StateError(
            f"the restored cache gives other logits than the saved one (by {difference:.2g} of "
            "their range)"
        )
