"""The journal of a chat, which a crash cannot hurt."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from kept_chats import ASKED, SAID, reread

from ggext.chat.journal import Journal
from ggext.chat.transcript import TranscriptError, Turn
from ggext.errors import GgextError, OutputError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")


class TestJournal:
    def test_it_says_what_it_was_told_last(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "chat.jsonl"
        with Journal(path, "m.gguf") as journal:
            for turns in (
                ASKED,
                [*ASKED, Turn("assistant", "H")],
                SAID,
                SAID[:1],
                [*SAID[:1], Turn("user", "Bye")],
            ):
                journal.update(turns)
        assert reread(path) == [Turn("system", "Be kind."), Turn("user", "Bye")]
        assert path.parent.stat().st_mode & 0o077 == 0  # no one else's business

    def test_each_update_is_one_appended_line(self, tmp_path: Path) -> None:
        path = tmp_path / "chat.jsonl"
        with Journal(path, "m.gguf") as journal:
            journal.update(ASKED)
            before = path.read_bytes()
            journal.update(SAID)
            journal.update(SAID)
            added = path.read_bytes().removeprefix(before)
        assert json.loads(added) == {
            "keep": 2,
            "turns": [{"role": "assistant", "content": "Hi!", "reasoning": "Hm."}],
        }

    def test_a_line_that_was_being_written_is_all_that_a_crash_costs(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "chat.jsonl"
        with Journal(path, "m.gguf") as journal:
            journal.update(ASKED)
            whole = path.stat().st_size
            journal.update(SAID)
        data = path.read_bytes()
        for cut in range(whole, len(data)):
            path.write_bytes(data[:cut])
            with Journal(path, "m.gguf") as journal:
                assert journal.turns == ASKED
                assert journal.damaged == (cut > whole)
                journal.update(SAID)
            assert reread(path) == SAID

    def test_it_says_how_many_turns_left_the_context(self, tmp_path: Path) -> None:
        path = tmp_path / "chat.jsonl"
        with Journal(path, "m.gguf") as journal:
            journal.update(SAID)
            journal.update(SAID, 2)
        for _ in range(2):  # as it was written, and as it was when it was opened
            with Journal(path, "m.gguf") as journal:
                assert (journal.turns, journal.dropped_turns) == (SAID, 2)
        with Journal(path, "m.gguf") as journal:
            journal.update(SAID[:1])
            assert journal.dropped_turns == 0

    def test_two_programs_cannot_have_it(self, tmp_path: Path) -> None:
        with (
            Journal(tmp_path / "chat.jsonl", "m.gguf"),
            pytest.raises(OutputError, match="open in another ggext"),
        ):
            Journal(tmp_path / "chat.jsonl", "m.gguf")

    def test_a_full_disk_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_fd: int) -> None:
            raise OSError(28, "No space left on device")

        with Journal(tmp_path / "chat.jsonl", "m.gguf") as journal:
            monkeypatch.setattr("os.fsync", full)
            with pytest.raises(
                OutputError, match="No space left on device; the chat is not being kept"
            ):
                journal.update(ASKED)

    @pytest.mark.parametrize(
        "lines",
        [
            b"",
            b"[1]\n",
            b"\xff\n",
            b'{"format": "ggext journal", "version": 2, "model": "m"}\n',
            b'{"format": "ggext journal", "version": 1}\n',
        ],
    )
    def test_what_is_no_journal_is_refused_and_left_alone(
        self, tmp_path: Path, lines: bytes
    ) -> None:
        path = tmp_path / "chat.jsonl"
        path.write_bytes(lines)
        with pytest.raises(TranscriptError, match=str(path)):
            Journal(path, "m.gguf")
        assert path.read_bytes() == lines

    @pytest.mark.parametrize(
        "line",
        [
            b'{"keep": -1, "turns": []}',
            b'{"keep": 0, "turns": [{"role": "root"}]}',
            b'{"keep": 0, "turns": [], "left": 1}',
            b'{"keep": 0, "turns": [], "left": -1}',
            b'{"keep": 0, "turns": [], "left": "0"}',
            b'{"keep": 99999999999, "turns": []}',
            b"[" * 100_000,
            b"\xff\0",
            b"[1]",
            b'{"keep": 2, "turns": [{"role": "user", "conte',
        ],
    )
    def test_a_damaged_line_costs_that_line(self, tmp_path: Path, line: bytes) -> None:
        path = tmp_path / "chat.jsonl"
        more = [*SAID, Turn("user", "More?"), Turn("assistant", "More.")]
        with Journal(path, "m.gguf") as journal:
            journal.update(SAID)
            journal.update(more)
        head, first, second, _ = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join((head, first, line, second, b"")))
        with Journal(path, "m.gguf") as journal:
            assert (journal.turns, journal.damaged) == (more, 1)
        path.write_bytes(b"\n".join((head, line, second, b"")))
        with Journal(path, "m.gguf") as journal:
            assert (journal.turns, journal.damaged) == (more[len(SAID) :], 1)
        assert line in (tmp_path / "chat.jsonl.damaged").read_bytes()
        with Journal(path, "m.gguf") as journal:
            assert (journal.turns, journal.damaged) == (more[len(SAID) :], 0)

    @pytest.mark.parametrize(
        "error", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT]
    )
    @pytest.mark.parametrize("size", [1, 100_000])
    def test_a_failed_write_leaves_whole_lines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, size: int
    ) -> None:
        """Half of a large turn is written, then the disk fails; later it works again."""
        path = tmp_path / "chat.jsonl"
        more = [*SAID, Turn("user", "document " * size)]
        real = os.write

        def half(file: int, data: memoryview) -> int:
            monkeypatch.setattr("os.write", fails)
            return real(file, data[: len(data) // 2])

        def fails(_file: int, _data: memoryview) -> int:
            raise OSError(error, os.strerror(error))

        with Journal(path, "m.gguf") as journal:
            journal.update(SAID)
            monkeypatch.setattr("os.write", half)
            with pytest.raises(OutputError, match="the chat is not being kept"):
                journal.update(more)
            monkeypatch.setattr("os.write", real)
            assert reread_open(path) == SAID
            journal.update(more)
        assert reread(path) == more

    def test_what_cannot_be_cut_off_at_once_is_cut_off_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "chat.jsonl"
        real = os.write

        def half(file: int, data: memoryview) -> int:
            real(file, data[: len(data) // 2])
            monkeypatch.setattr("os.ftruncate", fails)
            fails()

        def fails(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with Journal(path, "m.gguf") as journal:
            journal.update(ASKED)
            with monkeypatch.context() as patch:
                patch.setattr("os.write", half)
                with pytest.raises(OutputError):
                    journal.update(SAID)
            monkeypatch.undo()
            journal.update(SAID)
        assert reread(path) == SAID

    def test_a_journal_that_vanished_is_written_again(self, tmp_path: Path) -> None:
        path = tmp_path / "chats" / "chat.jsonl"
        with Journal(path, "m.gguf") as journal:
            assert journal.update(ASKED) == ""
            path.unlink()
            assert (
                journal.update(SAID)
                == f"{path} had vanished; the whole chat was written again"
            )
            assert reread_open(path) == SAID
            shutil.rmtree(path.parent)
            more = [*SAID, Turn("user", "More?")]
            assert "written again" in journal.update(more)
            assert journal.update([*more, Turn("assistant", "Yes.")]) == ""
            with pytest.raises(OutputError, match="open in another ggext"):
                Journal(path, "m.gguf")
        assert reread(path) == [*more, Turn("assistant", "Yes.")]

    def test_links_and_pipes_in_its_place_are_refused(self, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        for name in ("chat.lock", "chat.jsonl"):
            folder = tmp_path / f"of {name}"
            folder.mkdir()
            (folder / name).symlink_to(victim)
            with pytest.raises(GgextError, match="is a link and not a plain file"):
                Journal(folder / "chat.jsonl", "m.gguf")
            (folder / name).unlink()
            os.mkfifo(folder / name)
            with pytest.raises(GgextError, match="is not a plain file"):
                Journal(folder / "chat.jsonl", "m.gguf")
        assert not victim.exists()

    def test_only_the_user_can_read_it(self, tmp_path: Path) -> None:
        was = os.umask(0)
        try:
            with Journal(tmp_path / "a" / "b" / "chat.jsonl", "m.gguf") as journal:
                journal.update(SAID)
        finally:
            os.umask(was)
        for name, mode in (("a", 0o700), ("a/b", 0o700), ("a/b/chat.jsonl", 0o600)):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def reread_open(path: Path) -> list[Turn]:
    """What a program would find that opens it after this one was killed."""
    copy = path.parent / "copy" / "chat.jsonl"
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
    return reread(copy)


WRITER = """
import sys
from pathlib import Path
from ggext.chat.journal import Journal
from ggext.chat.transcript import Turn
journal = Journal(Path(sys.argv[1]), "m.gguf")
turns = list(journal.turns)
while True:
    turns.append(Turn("user", f"{len(turns)} " + "word " * 500))
    journal.update(turns)
    print(len(turns), flush=True)
"""


def test_kill_9_loses_nothing_that_was_said(tmp_path: Path) -> None:
    """Killed at any moment, six times over: every turn that was reported as kept is there."""
    path = tmp_path / "chat.jsonl"
    reported = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(20):
                reported = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
        reported = int(rest[-1]) if rest else reported
        turns = reread(path)
        assert len(turns) >= reported
        assert all(turn.content.startswith(f"{i} word") for i, turn in enumerate(turns))
