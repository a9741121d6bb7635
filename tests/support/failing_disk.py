"""Does what writes and reads files, over and over, with each call on the disk failing in turn.

    LD_PRELOAD=faults.so python tests/support/failing_disk.py FOLDER SUBJECT SEED MOST

faults.so is made of `faults.c`. A subject is done once in peace, to count its calls, then for at
most MOST of them again with that call failing, or with all from there on. Whatever fails must be a
`GgextError` of one line, and leave the files as the subject says. Prints how often what came of it.
"""

from __future__ import annotations

import ctypes
import errno
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ggext.chat import transcript
from ggext.chat.journal import Journal
from ggext.chat.transcript import Turn
from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.errors import GgextError
from ggext.gguf import inplace
from ggext.gguf.open import read_gguf
from ggext.gguf.split import write_parts
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite
from ggext.rope.scaling import RopeScaling
from ggext.runtime.store import StateError

YARN = RopeScaling("yarn", factor=4)
TURNS = [Turn("user", "question"), Turn("assistant", "answer " * 3000)] * 4
OLD = b"what was there before"


@dataclass(frozen=True)
class Subject:
    """``prepare``: makes a folder as it is before; ``act``: what meets the failing disk; ``check``:
    looks at what it left, True where `act` raised nothing."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], object]
    check: Callable[[Path, bool], None]
    reads: bool = False


def whole_or_old(path: Path, whole: bytes, done: bool) -> None:
    """The file is what it was, or what it should be; no other is there."""
    assert path.read_bytes() == (whole if done else OLD), "neither the old nor the new"
    assert not list(path.parent.glob(".*")), "a temporary file was left"


class Converting:
    """Of a GGUF file or the demo's checkpoint to a file that is there already."""

    def __init__(
        self, folder: Path, *, reads: bool, source: Path | None = None
    ) -> None:
        self.source = source or folder / "source" / "m.gguf"
        if source is None:
            self.source.parent.mkdir()
            convert(ConvertOptions(DEMO_MODEL, self.source))
        self.reads = reads
        self.whole = folder / "whole.gguf"
        convert(ConvertOptions(self.source, self.whole, YARN))

    def subject(self) -> Subject:
        return Subject(self.prepare, self.act, self.check, self.reads)

    def prepare(self, folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / "m.gguf").write_bytes(OLD)
        shutil.copy(self.source, folder / "m.gguf")

    def act(self, folder: Path) -> object:
        out = folder / "out" / "m.gguf"
        return convert(ConvertOptions(folder / "m.gguf", out, YARN, force=True))

    def check(self, folder: Path, done: bool) -> None:
        whole_or_old(folder / "out" / "m.gguf", self.whole.read_bytes(), done)


class InPlace(Converting):
    """The file is the old or the new one when it is next opened, and undo leads to the old one."""

    def act(self, folder: Path) -> object:
        return convert(ConvertOptions(folder / "m.gguf", None, YARN, in_place=True))

    def check(self, folder: Path, done: bool) -> None:
        path = folder / "m.gguf"
        read_gguf(path)
        if inplace.Journal.of(path).entries:
            inplace.undo(path)
        else:
            assert not done, "a change without an undo file"
        assert path.read_bytes() == self.source.read_bytes(), "not the old file"


def splitting(_: Path) -> Subject:
    """A set of two parts is whole, or as it was."""
    fields = {"general.architecture": Field.of("x")}
    data = bytes(1 << 16)
    tensors = [
        TensorToWrite(name, (1 << 14,), 0, len(data), lambda: [data]) for name in "ab"
    ]

    def act(folder: Path) -> object:
        return write_parts(folder / "x.gguf", fields, tensors, len(data))

    def check(folder: Path, done: bool) -> None:
        paths = sorted(folder.iterdir())
        if done:
            assert [read_gguf(path, any_kind=True).size for path in paths]
            assert len(paths) == 2, paths
        else:
            assert all(path.suffix == ".gguf" for path in paths), paths

    return Subject(lambda _: None, act, check)


def journal(_: Path) -> Subject:
    """A chat goes on after a turn that could not be kept, and is there afterwards."""

    def prepare(folder: Path) -> None:
        with Journal(folder / "chat" / "chat.jsonl", "m") as kept:
            kept.update(TURNS[:2])

    def act(folder: Path) -> None:
        refused: GgextError | None = None
        with Journal(folder / "chat" / "chat.jsonl", "m") as kept:
            for count in range(2, len(TURNS) + 1, 2):
                try:
                    kept.update(TURNS[:count])
                except GgextError as error:
                    refused = error
        if refused is not None:
            raise refused

    def check(folder: Path, done: bool) -> None:
        Journal(
            folder / "chat" / "chat.jsonl", "m"
        ).close()  # cuts off what could not be
        with Journal(folder / "chat" / "chat.jsonl", "m") as kept:
            assert kept.damaged == 0, "a torn line stayed"
            assert kept.turns == TURNS[: len(kept.turns)], "other turns than were said"
            assert len(kept.turns) == len(TURNS) if done else len(kept.turns) >= 2

    return Subject(prepare, act, check)


def saved_chat(_: Path) -> Subject:
    from ggext.runtime.sampling import Sampling

    def act(folder: Path) -> None:
        transcript.save(folder / "chat.json", "m", Sampling(), TURNS)

    def check(folder: Path, done: bool) -> None:
        if done:
            assert list(transcript.load(folder / "chat.json").turns) == TURNS
            (folder / "chat.json").unlink()
        whole = [path for path in folder.iterdir() if path.name != "chat.json"]
        assert not whole, whole

    return Subject(lambda _: None, act, check)


class State:
    """The KV cache of a session, saved over an older one, or restored."""

    def __init__(self, folder: Path, *, reads: bool) -> None:
        from ggext.runtime.engine import Model, Session, SessionOptions

        path = folder / "model.gguf"
        convert(ConvertOptions(DEMO_MODEL, path))
        self.reads = reads
        self.key = {"the model file": "a"}
        self.session = Session(Model.open(path), SessionOptions(n_ctx=128, threads=1))
        self.tokens = [1 + i % 250 for i in range(100)]
        self.session.evaluate(self.tokens[:60])
        self.save(folder / "old.bin")
        self.session.evaluate(self.tokens)
        self.saved = folder / "old.bin"

    def save(self, path: Path) -> object:
        from ggext.runtime import store

        return store.save(path, self.session, self.key)

    def subject(self) -> Subject:
        return Subject(self.prepare, self.act, self.check, self.reads)

    def prepare(self, folder: Path) -> None:
        shutil.copy(self.saved, folder / "kv.bin")
        if self.reads:
            self.session.clear()

    def act(self, folder: Path) -> object:
        from ggext.runtime import store

        if not self.reads:
            return self.save(folder / "kv.bin")
        return store.restore(folder / "kv.bin", self.session, self.key)

    def check(self, folder: Path, done: bool) -> None:
        assert [path.name for path in folder.iterdir()] == ["kv.bin"], "a part was left"
        if self.reads:
            assert self.session.used == (60 if done else 0)
            return
        same = (folder / "kv.bin").read_bytes() == self.saved.read_bytes()
        assert same is not done, "neither the old state nor the new one"


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "convert": lambda folder: Converting(folder, reads=False).subject(),
    "convert, read": lambda folder: Converting(folder, reads=True).subject(),
    "in place": lambda folder: InPlace(folder, reads=False).subject(),
    "in place, read": lambda folder: InPlace(folder, reads=True).subject(),
    "split": splitting,
    "journal": journal,
    "saved chat": saved_chat,
    "state": lambda folder: State(folder, reads=False).subject(),
    "state, read": lambda folder: State(folder, reads=True).subject(),
}


class Disk:
    """What `faults.c` is told."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.faults_count.restype = ctypes.c_long
        self.counted = 0

    def plan(
        self, folder: Path, at: int, error: int, reads: bool, for_good: bool
    ) -> None:
        below = str(folder.resolve()).encode()
        self._library.faults_plan(below, ctypes.c_long(at), error, reads, for_good)

    def heal(self) -> None:
        """The disk is sound; ``counted``: how many calls there were since `plan`."""
        self.counted = int(self._library.faults_count())
        self._library.faults_plan(b"", ctypes.c_long(0), 0, 0, 0)


def attempt(
    subject: Subject, folder: Path, disk: Disk, fault: tuple[int, int, bool]
) -> str:
    at, error, for_good = fault
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subject.prepare(folder)
    disk.plan(folder, at, error, subject.reads, for_good)
    refused: GgextError | None = None
    try:
        subject.act(folder)
    except GgextError as error:
        refused = error
    finally:
        disk.heal()
    if refused is not None:
        assert "\n" not in str(refused)
        assert isinstance(refused, StateError) or str(folder) in str(refused), refused
    done = refused is None
    subject.check(folder, done)
    return "done in spite of it" if done else "refused"


def main(folder: Path, name: str, seed: int, most: int) -> str:
    draw, disk, outcomes = random.Random(seed), Disk(), Counter[str]()
    for part in ("work", "given"):
        (folder / part).mkdir(parents=True)
    subject = SUBJECTS[name](folder / "given")
    assert attempt(subject, folder / "work", disk, (0, 0, False)).startswith("done")
    calls = disk.counted
    errors = (
        [errno.EIO]
        if subject.reads
        else [errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS]
    )
    for at in sorted(draw.sample(range(1, calls + 1), min(most, calls))):
        fault = at, draw.choice(errors), draw.random() < 0.5
        try:
            outcomes[attempt(subject, folder / "work", disk, fault)] += 1
        except BaseException:
            sys.stderr.write(f"{name}: {fault} of {calls} calls\n")
            raise
    return f"{name}: {calls} calls, " + ", ".join(
        f"{count} {what}" for what, count in outcomes.most_common()
    )


if __name__ == "__main__":
    sys.stdout.write(
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])) + "\n"
    )
