"""A planned scaling, executed on a GGUF file that exists: in its place, or as a second file that
shares its data."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggext.errors import GgufError, RopeError, UsageError
from ggext.gguf.edit import DataWouldMoveError, Edit, NewTensor, plan_edit
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.shards import all_parts
from ggext.gguf.types import Field
from ggext.rope.decode import ROPE_FREQS
from ggext.rope.encode import SCALING_TENSORS, Encoding

_F32 = 0
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Bake:
    """``fields``: all that the file is to say. ``factors``: frequency factors by tensor, as
    little-endian float32. ``stale``: tensors of an earlier scaling."""

    gguf: GgufFile
    fields: Mapping[str, Field]
    factors: Mapping[str, bytes]
    stale: tuple[str, ...]

    def in_place(self, progress: Progress) -> str:
        """Returns what was done, in words. Factors that others lie behind become ones, by which
        llama.cpp divides without effect."""
        from ggext.gguf.inplace import apply

        check_other_parts(self.gguf)
        edit = self._edit({name: self._ones(name) for name in self.stale})
        done = apply(self.gguf, edit, progress)
        words = [f"{done.written:,} bytes written"]
        if done.inserted:
            words.append(f"{done.inserted:,} bytes of room made, data {done.how}")
        if edit.neutralized:
            words.append(f"{', '.join(edit.neutralized)} set to 1")
        return ", ".join(words)

    def beside(self, out: Path, progress: Progress) -> str:
        """A second file with the data of this one. Returns how it got there, empty where data would
        have to move and nothing was written."""
        from ggext.gguf.beside import write_beside

        try:
            edit = self._edit(dict.fromkeys(self.stale))
        except DataWouldMoveError:
            return ""
        return f"data {write_beside(out, self.gguf, edit, progress)}"

    def _edit(self, remove: Mapping[str, bytes | None]) -> Edit:
        add = [
            NewTensor(name, (len(data) // 4,), _F32, data) for name, data in self.factors.items()
        ]
        return plan_edit(self.gguf, self._in_order(), remove, add)

    def _ones(self, name: str) -> bytes | None:
        """LongRoPE's tensors are loaded only with LongRoPE: left behind, they would keep the file
        from loading."""
        info = self.gguf.tensors[name]
        return (
            float32_bytes([1.0] * (info.nbytes // 4))
            if name == ROPE_FREQS and info.type == _F32
            else None
        )

    def _in_order(self) -> dict[str, Field]:
        """Keys that were there keep their places, so that as little as possible of the header
        changes."""
        kept = {key: self.fields[key] for key in self.gguf.fields if key in self.fields}
        return kept | dict(self.fields)


def float32_bytes(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def check_in_place(gguf: GgufFile | None, path: Path, others: Sequence[str]) -> None:
    """Raises ``UsageError`` for a request that a change in place cannot mean. ``others``: what else
    it names."""
    if gguf is None:
        raise UsageError(f"{path} is a checkpoint; --in-place changes a GGUF file")
    if others:
        raise UsageError(
            f"--in-place changes the header of {path} alone and excludes {', '.join(others)}; "
            "leave one of them out"
        )


def check_weights_stay(path: Path, encoding: Encoding, query_scale: float) -> None:
    """Raises ``RopeError`` where the gain is, or was, folded into the query weights: they would be
    rounded again."""
    if encoding.query_scale != query_scale:
        what = "folded is" if encoding.query_scale != 1.0 else "taking the folded gain out is"
        raise RopeError(
            f"{path}: {what} a change of the query weights, which is not made in place; name an "
            "output, choose "
            "--encoding keys, or ggext undo a bake in place"
        )


def check_other_parts(gguf: GgufFile) -> None:
    """Raises ``GgufError`` where another part holds frequency factors, which only the first one's
    metadata would contradict."""
    if gguf.get("split.count", 1) < 2:
        return
    for part in all_parts(gguf.path)[1:]:
        found = [
            name
            for name in SCALING_TENSORS
            if part.exists() and name in read_gguf(part, any_kind=True).tensors
        ]
        if found:
            raise GgufError(
                f"{part} holds {found[0]}; merge the parts first: llama-gguf-split --merge"
            )
