"""Write a GGUF file in one pass: header, then each tensor's data as it is produced.

The file is written beside its place and renamed when whole, so an interrupted or failed run leaves
what was there before.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ggext.errors import OutputError
from ggext.gguf.types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    Field,
    TensorInfo,
    aligned,
    pack_string,
)

_VERSION = 3
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class TensorToWrite:
    """``shape`` in GGUF order (contiguous dimension first), ``type`` a ggml type number, ``chunks`` gives the
    ``nbytes`` of data piece by piece when its turn has come."""

    name: str
    shape: tuple[int, ...]
    type: int
    nbytes: int
    chunks: Callable[[], Iterable[Buffer]]


def write_gguf(
    path: Path,
    fields: Mapping[str, Field],
    tensors: Sequence[TensorToWrite],
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the file and return its size in bytes. ``progress`` gets the bytes of each piece.

    Raises ``OutputError`` when the disk is too small or writing fails; ``path`` is then untouched.
    """
    alignment = int(fields["general.alignment"].value) if "general.alignment" in fields else DEFAULT_ALIGNMENT
    infos = layout(tensors, alignment)
    header = pack_header(fields, infos)
    start = aligned(len(header), alignment)
    total = start + (aligned(infos[-1].offset + infos[-1].nbytes, alignment) if infos else 0)
    with whole_file(path, total) as file:
        file.write(header + bytes(start - len(header)))
        for tensor, info in zip(tensors, infos, strict=True):
            _write_tensor(file, tensor, info, alignment, progress)
    return total


def layout(tensors: Sequence[TensorToWrite], alignment: int) -> list[TensorInfo]:
    """Place the tensors one after the other, each start aligned."""
    infos, offset = [], 0
    for tensor in tensors:
        infos.append(TensorInfo(tensor.name, tensor.shape, tensor.type, offset, tensor.nbytes))
        offset = aligned(offset + tensor.nbytes, alignment)
    return infos


def pack_header(fields: Mapping[str, Field], tensors: Sequence[TensorInfo]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(fields))]
    parts += [pack_string(key) + field.packed() for key, field in fields.items()]
    for tensor in tensors:
        n = len(tensor.shape)
        parts.append(pack_string(tensor.name))
        parts.append(struct.pack(f"<I{n}QIQ", n, *tensor.shape, tensor.type, tensor.offset))
    return b"".join(parts)


def _write_tensor(
    file: BinaryIO,
    tensor: TensorToWrite,
    info: TensorInfo,
    alignment: int,
    progress: Callable[[int], None],
) -> None:
    written = 0
    for chunk in tensor.chunks():
        written += file.write(chunk)
        progress(len(chunk) if isinstance(chunk, (bytes, bytearray)) else chunk.nbytes)
    if written != info.nbytes:
        raise OutputError(f"tensor {tensor.name}: {written} bytes were made where {info.nbytes} belong")
    file.write(bytes(aligned(written, alignment) - written))


@contextmanager
def whole_file(path: Path, size: int) -> Iterator[BinaryIO]:
    """A new file beside ``path`` that takes its place when the block ends well, and is removed when not.

    ``size``: bytes that will be needed; checked against the free space first.
    """
    with replacing(path, size) as beside:
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}; nothing was written") from None


@contextmanager
def replacing(path: Path, size: int = 0) -> Iterator[Path]:
    """The path of a temporary file beside ``path``, renamed to it when the block ends well."""
    with temporary_beside(path, size) as beside:
        yield beside
        umask = os.umask(0)
        os.umask(umask)
        try:
            beside.chmod(0o666 & ~umask)  # mkstemp's 0600 is for secrets, not for models
            beside.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}; nothing was written") from None


@contextmanager
def temporary_beside(path: Path, size: int = 0) -> Iterator[Path]:
    """An empty file in the folder of ``path``, removed afterwards. ``size``: bytes that must be free."""
    folder = path.parent
    try:
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OutputError(
                f"{path} needs {size:,} bytes and the disk has {free:,} free; free some, or write elsewhere"
            )
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}; choose a folder that can be written") from None
    beside = Path(name)
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def check_output(path: Path, force: bool) -> None:
    """Raise ``OutputError`` early for an output that could not be put in place."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name the output file")
    if path.exists() and not force:
        raise OutputError(f"{path} exists; use --force to replace it, or name another output")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it first")
