"""A planned scaling, executed on a GGUF file that exists: in its place, or as a second file that
shares its data."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggext.convert.fold import is_query_norm
from ggext.convert.model_source import SourceTensor
from ggext.errors import GgufError, RopeError, UsageError
from ggext.gguf.edit import DataWouldMoveError, Edit, NewTensor, plan_edit
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.shards import all_parts
from ggext.gguf.types import F32, Field
from ggext.rope.encoding import SCALING_TENSORS
from ggext.rope.keys import ROPE_FREQS

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Bake:
    """A scaling that leaves the data of a file where it is."""

    gguf: GgufFile
    # All that the file is to say.
    fields: Mapping[str, Field]
    # Frequency factors by tensor, as little-endian float32.
    factors: Mapping[str, bytes]
    # Tensors of an earlier scaling.
    stale: tuple[str, ...]
    # Query norms with a gain in them, by tensor, as little-endian float32.
    norms: Mapping[str, bytes] = field(default_factory=dict)

    def in_place(self, progress: Progress) -> str:
        """Returns what was done, in words. Factors that others follow become ones, by which
        llama.cpp divides without effect."""
        from ggext.gguf.inplace import apply

        check_other_parts(self.gguf)
        edit = self._edit({name: self._ones(name) for name in self.stale})
        done = apply(self.gguf, edit, progress)
        words = [f"{done.written:,} bytes written"]
        if self.norms:
            words.append(f"{len(self.norms)} query norms among them")
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
            NewTensor(name, (len(data) // 4,), F32, data)
            for name, data in self.factors.items()
        ]
        for name, data in self.norms.items():
            add.append(NewTensor(name, self.gguf.tensors[name].shape, F32, data))
        return plan_edit(self.gguf, self._in_order(), remove, add)

    def _ones(self, name: str) -> bytes | None:
        """LongRoPE's tensors are loaded only with LongRoPE: left behind, they would keep the file
        from loading."""
        info = self.gguf.tensors[name]
        return (
            float32_bytes([1.0] * (info.nbytes // 4))
            if name == ROPE_FREQS and info.type == F32
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
        raise UsageError(f"{path} is a checkpoint; in_place changes a GGUF file")
    if others:
        raise UsageError(
            f"in_place changes the header of {path} alone and excludes {', '.join(others)}; "
            "leave one of them out"
        )


def check_weights_stay(
    path: Path, scaled: Sequence[SourceTensor], *, was_folded: bool
) -> None:
    """Raises ``RopeError`` where a gain goes into, or comes out of, other query weights than norms
    in float32: they would be rounded again. ``scaled``: the tensors that a fold changes."""
    others = [t for t in scaled if not (is_query_norm(t) and t.type == F32)]
    if not others:
        return
    doing = "folding the gain into"
    remedy = "encoding='keys'"
    if was_folded:
        doing = "taking the folded gain out of"
        remedy = "ggext undo, after a bake in place"
    raise RopeError(
        f"{path}: {doing} {others[0].name} and {len(others) - 1} others is not done in place, "
        f"where they would be rounded again; name an output, or choose {remedy}"
    )


def check_other_parts(gguf: GgufFile) -> None:
    """Raises ``GgufError`` where another part holds frequency factors, which only the first one's
    metadata would contradict."""
    if gguf.get("split.count", 1) < 2:
        return
    for part in all_parts(gguf.path)[1:]:
        factors = [
            name
            for name in SCALING_TENSORS
            if part.exists() and name in read_gguf(part, any_kind=True).tensors
        ]
        if factors:
            raise GgufError(
                f"{part} holds {factors[0]}; merge the parts first: llama-gguf-split --merge"
            )
