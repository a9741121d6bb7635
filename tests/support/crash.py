"""Kills a process in the middle of changes in place, and looks at what the next one makes of it.

    python tests/support/crash.py FOLDER SEED POINTS [--without-shifts] [--power]

Each point is a system call of a change, of its undo, or of the repair of either, drawn at random;
the child ends by SIGKILL before it, half way through it (writes) or after it. After the repair the
file must be the old or the new one to the byte, and undo must lead to the old one. Prints a line
with the counts.

--power: the machine stops, not the process. Of what was written and not synced, any sectors may be
missing."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from library_gguf import library_file

from ggext.gguf import disk, inplace
from ggext.gguf.edit import Edit, NewTensor, plan_edit
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import Field

CALLS = (
    "write_at",
    "insert_range",
    "collapse_range",
    "truncate",
    "sync",
    "replace",
    "remove",
    "sync_folder",
    "share",
    "copy",
)
SECTOR = 512


def some_edit(gguf: GgufFile, size: int = 2000) -> Edit:
    """A key changed, one more, and a tensor more: what a bake does."""
    fields = gguf.fields | {
        "llama.context_length": Field.of(1024),
        "ggext.recipe": Field.of("x" * size),
    }
    return plan_edit(
        gguf, fields, {}, [NewTensor("rope_freqs.weight", (8,), 0, bytes(range(32)))]
    )


def apply(path: Path) -> None:
    gguf = read_gguf(path)
    inplace.apply(gguf, some_edit(gguf))


def without_shifts() -> None:
    """As on a file system that cannot insert ranges."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    disk.insert_range = disk.collapse_range = unsupported


class Killer:
    """Counts the calls, and ends the process at one of them."""

    def __init__(self, at: int | None, power: random.Random | None) -> None:
        self.at, self.count, self.power = at, 0, power
        self.unsynced: dict[
            tuple[int, int], list[bytes]
        ] = {}  # (file, sector) → what it held, write by write
        for name in CALLS:
            setattr(disk, name, self.wrapped(name, getattr(disk, name)))

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.point()
            if name == "write_at":
                file, data, offset = arguments
                self.remember(file, offset, len(data))
                call(file, data[: len(data) // 2], offset)
                self.point()
            elif name in ("insert_range", "collapse_range"):
                assert not any(file == arguments[0] for file, _ in self.unsynced), (
                    "sectors move that are not synced"
                )
            result = call(*arguments)
            if name == "sync":
                self.unsynced = {
                    k: v for k, v in self.unsynced.items() if k[0] != arguments[0]
                }
            self.point()
            return result

        return counted

    def remember(self, file: int, offset: int, length: int) -> None:
        for sector in range(offset // SECTOR, -(-(offset + length) // SECTOR)):
            held = os.pread(file, SECTOR, sector * SECTOR).ljust(SECTOR, b"\0")
            self.unsynced.setdefault((file, sector), []).append(
                held[: self.held_length(file, sector, offset, length)]
            )

    @staticmethod
    def held_length(file: int, sector: int, offset: int, length: int) -> int:
        """A lost sector at the end of a file does not make it longer than the write had."""
        return min(
            SECTOR, max(os.fstat(file).st_size, offset + length) - sector * SECTOR
        )

    def point(self) -> None:
        self.count += 1
        if self.count == self.at:
            for (file, sector), held in self.unsynced.items() if self.power else ():
                assert self.power is not None
                kept = self.power.randint(0, len(held))
                if kept < len(held):
                    os.pwrite(file, held[kept], sector * SECTOR)
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(
    work: Callable[[], object], kill_at: int | None, power: random.Random | None = None
) -> tuple[bool, int]:
    """Whether it was killed, and how many points it passed if not."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        killer = Killer(kill_at, power)
        try:
            work()
            os.write(write, str(killer.count).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as counted:
        text = counted.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True, 0
    assert os.WEXITSTATUS(status) == 0, "the child failed"
    return False, int(text)


def main(folder: Path, points: int, seed: int, with_power: bool) -> str:
    draw, told = random.Random(seed), Counter[str]()
    pristine = library_file(folder / "pristine.gguf")
    path = folder / "model.gguf"
    undo_file = path.with_name(path.name + ".ggext-undo")
    shutil.copy(pristine, path)
    old = path.read_bytes()
    _, n_apply = in_child(lambda: apply(path), None)
    new = path.read_bytes()
    _, n_undo = in_child(lambda: inplace.undo(path), None)
    assert path.read_bytes() == old != new
    for _ in range(points):
        undoing = draw.random() < 0.4
        if undoing:
            apply(path)
            assert path.read_bytes() == new
        work = (lambda: inplace.undo(path)) if undoing else (lambda: apply(path))
        power = random.Random(draw.random()) if with_power else None
        killed, _ = in_child(
            work, draw.randint(1, n_undo if undoing else n_apply), power
        )
        assert killed
        while draw.random() < 0.5:  # the repair is killed too, and not once
            in_child(lambda: inplace.repair(path), draw.randint(1, n_undo), power)
        done = inplace.repair(path)
        read_gguf(path)
        told[done.split(":")[0] or "nothing to repair"] += 1
        assert path.read_bytes() == (new if undo_file.exists() else old), (
            "neither the old file nor the new one"
        )
        if undo_file.exists():
            inplace.undo(path)
        assert path.read_bytes() == old
        assert sorted(p.name for p in folder.iterdir()) == [
            "model.gguf",
            "pristine.gguf",
        ], "something was left"
    return f"{points} of {n_apply} + {n_undo} points: " + ", ".join(
        f"{k} ×{n}" for k, n in told.most_common()
    )


if __name__ == "__main__":
    if "--without-shifts" in sys.argv:
        without_shifts()
    sys.stdout.write(
        main(
            Path(sys.argv[1]),
            points=int(sys.argv[3]),
            seed=int(sys.argv[2]),
            with_power="--power" in sys.argv,
        )
        + "\n"
    )
