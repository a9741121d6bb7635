"""A second file with another header and the same tensor data, shared block by block where the file
system can."""

from __future__ import annotations

import os
from pathlib import Path

from ggext.errors import OutputError
from ggext.gguf import disk
from ggext.gguf.disk import Progress, silent
from ggext.gguf.edit import Edit
from ggext.gguf.header import (
    BLOCK,
    alignment_of,
    pack_header,
    packed_length,
    roomy_length,
)
from ggext.gguf.reader import GgufFile
from ggext.gguf.writer import output_errors, replacing


def write_beside(
    out: Path, gguf: GgufFile, edit: Edit, progress: Progress = silent
) -> str:
    """``edit`` of ``gguf`` as the file ``out``, which is whole or absent. Returns ``shared`` or
    ``copied``.

    The header is made as long as keeps the data at the same place within a block: only whole blocks
    are shared."""
    needed = packed_length(edit.fields, edit.infos)
    start = roomy_length(
        needed, alignment_of(edit.fields), congruent_to=gguf.data_offset
    )
    header = pack_header(edit.fields, edit.infos, start, gguf.version)
    source_at = gguf.data_offset // BLOCK * BLOCK
    target_at = start - gguf.data_offset + source_at
    # the new file is empty and not truncated again: after O_TRUNC, ext4 writes all data out on
    # close
    with (
        replacing(out, start) as beside,
        output_errors(out),
        gguf.path.open("rb") as source,
    ):
        target = beside.handle
        shared = False
        length = max(0, gguf.size - source_at)
        os.ftruncate(target, target_at + length)
        if length:
            span = disk.Span(source_at, target_at, length)
            shared = disk.transfer(source.fileno(), target, span, out.parent, progress)
        status = os.fstat(source.fileno())
        if (status.st_size, status.st_mtime_ns) != (gguf.size, gguf.mtime_ns):
            raise OutputError(
                f"{gguf.path} was changed by another program meanwhile; nothing was written: "
                "try again"
            )
        disk.write_at(target, header, 0)
        for offset, data in edit.patches:
            disk.write_at(target, data, start + offset)
        os.ftruncate(target, start + edit.data_length)
    return "shared" if shared else "copied"
