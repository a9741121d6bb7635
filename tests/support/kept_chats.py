"""Chats and caches that are kept on disk."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.chat.journal import Journal
from ggext.chat.transcript import Turn

if TYPE_CHECKING:
    from ggext.runtime.engine import Session
    from ggext.runtime.memory import WhenFull


ASKED = [Turn("system", "Be kind."), Turn("user", "Hello ☃")]
SAID = [*ASKED, Turn("assistant", "Hi!", "Hm.")]


def reread(path: Path) -> list[Turn]:
    with Journal(path, "m.gguf") as journal:
        return journal.turns


Open = Callable[..., "Session"]
TEXT = [1 + i % 250 for i in range(1500)]
KEY = {"the model file": "a", "the version": "b"}


def streaming(
    when_full: WhenFull = "stream", n_ctx: int = 512, **memory: Any
) -> dict[str, Any]:
    from ggext.runtime.engine import MemoryOptions

    return {"n_ctx": n_ctx, "memory": MemoryOptions(when_full, **memory)}


def repair(data: bytearray) -> None:
    """The checksum that a stranger would write."""
    struct.pack_into("<I", data, 8, zlib.crc32(data[12:]))
