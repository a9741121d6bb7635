"""Kept chats: the journal that a crash cannot hurt, and the KV cache on disk."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_chat import QueuedEngine, Script, chat

from ggext.chat.journal import Journal
from ggext.chat.session import Keeper, autosaved, named
from ggext.chat.transcript import TranscriptError, Turn
from ggext.errors import GgextError, ModelError, OutputError, UsageError
from ggext.folders import state_folder

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

if TYPE_CHECKING:
    from ggext.runtime.engine import Model, Session
    from ggext.runtime.memory import WhenFull

ASKED = [Turn("system", "Be kind."), Turn("user", "Hello ☃")]
SAID = [*ASKED, Turn("assistant", "Hi!", "Hm.")]


def reread(path: Path) -> list[Turn]:
    with Journal(path, "m.gguf") as journal:
        return journal.turns


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
                assert (journal.turns, journal.left) == (SAID, 2)
        with Journal(path, "m.gguf") as journal:
            journal.update(SAID[:1])
            assert journal.left == 0

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


def test_names_of_sessions() -> None:
    assert named("my book").parent == state_folder() / "sessions"
    for name in ("", "..", ".x", "a/b", "a\\b", "a\nb"):
        with pytest.raises(UsageError, match="cannot name a session"):
            named(name)


def said(folder: Path, text: str = "hello") -> Path:
    with Keeper(folder, "model.gguf", None) as keeper:
        keeper.record([Turn("user", text)])
    return folder


def test_of_chats_without_a_name_those_used_last_stay() -> None:
    chats = [said(autosaved()) for _ in range(22)]
    assert len(list(chats[0].parent.iterdir())) == 20
    for day, folder in enumerate(chats[2:]):
        for path in (folder, folder / "chat.jsonl"):
            os.utime(path, (86_400 * day, 86_400 * day))
    with Keeper(chats[2], "model.gguf", None) as keeper:  # the oldest is continued
        keeper.record([Turn("user", "again")])
    (chats[0].parent / "mine").mkdir()
    named_alike = said(named("autosave-2020-notes"))
    newest = said(autosaved())
    left = set(chats[0].parent.iterdir())
    assert left == {chats[2], *chats[4:], newest, named_alike, chats[0].parent / "mine"}


def test_clean_up_takes_no_chat_that_is_open() -> None:
    with Keeper(autosaved(), "model.gguf", None) as first:
        first.record([Turn("user", "my long chat")])
        folder = named(first.name)
        os.utime(folder / "chat.jsonl", (1, 1))
        os.utime(folder, (1, 1))
        for _ in range(21):
            said(autosaved())
        assert (
            first.record([Turn("user", "my long chat"), Turn("assistant", "more")])
            == ""
        )
    assert len(reread(folder / "chat.jsonl")) == 2


def test_clean_up_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    foreign = named("work")
    foreign.mkdir(parents=True)
    (foreign / "my notes.txt").write_text("mine")
    with Keeper(foreign, "model.gguf", None):
        pass
    assert [path.name for path in foreign.iterdir()] == ["my notes.txt"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".unnamed").touch()
    link = foreign.parent / "autosave-20200101-000000-abcdef"
    link.symlink_to(tmp_path / "elsewhere")
    for _ in range(22):
        said(autosaved())
    assert link.exists()


def test_leaving_an_empty_chat_takes_nothing_from_one_that_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second waits for the lock, and gets it when the first has removed the folder."""
    first = Keeper(named("r"), "model.gguf", None)
    real, begun = os.close, []

    def close(handle: int) -> None:
        real(handle)
        if not begun and not named("r").exists():
            begun.append(handle)
            begun.append(Keeper(named("r"), "model.gguf", None))

    with monkeypatch.context() as patch:
        patch.setattr("os.close", close)
        first.close()
    second = begun[1]
    second.record([Turn("user", "precious")])
    second.close()
    assert len(reread(named("r") / "chat.jsonl")) == 1


def test_a_chat_is_kept_while_it_goes_on() -> None:
    folder = named("crown")
    with Keeper(folder, "model.gguf", None) as keeper:
        seen: list[int] = []
        screen = Script("Hello", "And?", "/undo", "/set seed 3")
        screen.interrupt_at = "i"
        engine = QueuedEngine("Hi!", "Well.")
        original = screen.answer

        def answer(
            text: str,
        ) -> None:  # the question is on disk before its answer begins
            seen.append((folder / "chat.jsonl").read_text().count('"role": "user"'))
            original(text)

        screen.answer = answer  # type: ignore[method-assign]
        chat(engine, screen, keeper=keeper)
    assert seen[0] == 1
    assert [turn.content for turn in reread(folder / "chat.jsonl")] == ["Hello", "Hi"]


def test_a_disk_that_fills_up_ends_the_keeping_not_the_chat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Keeper(named("full"), "model.gguf", None) as keeper:

        def full(_turns: object, _left: int) -> None:
            raise OutputError(
                "chat.jsonl: No space left on device; the chat is not being kept"
            )

        monkeypatch.setattr(keeper, "record", full)
        screen = Script("Hello", "And?")
        conversation = chat(QueuedEngine("Hi!", "Well."), screen, keeper=keeper)
    assert [line for line in screen.lines if line.startswith("!")] == [
        (
            "! chat.jsonl: No space left on device; the chat is not being kept; /save FILE keeps it "
            "elsewhere"
        )
    ]
    assert len(conversation.turns) == 4


def test_a_chat_in_which_nothing_was_said_leaves_nothing() -> None:
    with Keeper(named("empty"), "model.gguf", None):
        pass
    assert list((state_folder() / "sessions").iterdir()) == []


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, for 2,048 tokens."""
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    path = tmp_path_factory.mktemp("session") / "demo.gguf"
    convert(ConvertOptions(DEMO_MODEL, path, RopeScaling("yarn", factor=8)))
    return path


@pytest.fixture
def model(model_path: Path) -> Iterator[Model]:
    from ggext.runtime.engine import Model

    with Model.open(model_path) as model:
        yield model


Open = Callable[..., "Session"]


@pytest.fixture
def open_session(model: Model) -> Iterator[Open]:
    from contextlib import ExitStack

    from ggext.runtime.engine import Session, SessionOptions

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            Session(model, SessionOptions(**options))
        )


TEXT = [1 + i % 250 for i in range(1500)]
KEY = {"the model file": "a", "the version": "b"}


@pytest.mark.parametrize(
    "options",
    [{}, {"kv_type": "f32"}, {"kv_type": "q8_0"}, {"flash_attention": True}],
    ids=["f16", "f32", "q8_0", "flash attention"],
)
def test_a_restored_cache_goes_on_bit_for_bit(
    tmp_path: Path, open_session: Open, options: dict[str, Any]
) -> None:
    from ggext.runtime import store

    first, second = open_session(**options), open_session(**options)
    first.evaluate(TEXT)
    size = store.save(tmp_path / "kv.bin", first, KEY)
    assert size == (tmp_path / "kv.bin").stat().st_size
    assert store.restore(tmp_path / "kv.bin", second, KEY) == len(TEXT)
    assert second.tokens == first.tokens
    for more in ([7], [8, 9, 10]):
        longer = [*first.tokens, *more]
        counts = [session.evaluate(longer) for session in (first, second)]
        assert counts[1].reused == counts[0].reused == len(longer) - len(more)
        assert np.array_equal(first.last_logits(), second.last_logits())


def streaming(
    when_full: WhenFull = "stream", n_ctx: int = 512, **memory: Any
) -> dict[str, Any]:
    from ggext.runtime.engine import MemoryOptions

    return {"n_ctx": n_ctx, "memory": MemoryOptions(when_full, **memory)}


@pytest.mark.parametrize("policy", ["stream", "recompute", "compress"])
@pytest.mark.parametrize("kv_type", ["f16", "f32"])
def test_a_text_that_left_the_context_goes_on_where_it_was(
    tmp_path: Path, open_session: Open, policy: WhenFull, kv_type: str
) -> None:
    """YaRN's keys, turned by ggext's own rotation. Of the two answers one needs room that must be
    made first."""
    from ggext.runtime import store
    from ggext.runtime.engine import Sampling

    options = streaming(policy) | {"kv_type": kv_type}
    first, second = open_session(**options), open_session(**options)
    first.evaluate(TEXT[:1300])
    assert first.dropped > 700
    store.save(tmp_path / "kv.bin", first, KEY)
    assert store.restore(tmp_path / "kv.bin", second, KEY) == first.used
    assert (second.tokens, second.dropped) == (first.tokens, first.dropped)
    text = TEXT[:1310]
    for _ in range(2):
        counts = [session.evaluate(text) for session in (first, second)]
        assert counts[0].reused == counts[1].reused == len(text) - counts[1].evaluated
        assert counts[1].evaluated <= 11
        answers = [
            list(session.generate(Sampling(temperature=0), 150))
            for session in (first, second)
        ]
        assert answers[0] == answers[1]
        assert (second.tokens, second.dropped) == (first.tokens, first.dropped)
        text = [*text, *answers[0], *TEXT[:10]]
    assert (
        second.evaluate([*text[:700], 5]).reused == 4
    )  # what left is known again, and that this is another text


def test_what_left_is_known_however_it_left() -> None:
    from ggext.runtime.memory.base import Gone

    left = TEXT[4:1100]
    whole, parts = Gone(), Gone()
    whole.add(4, left)
    for start in range(0, len(left), 37):
        parts.add(4, left[start : start + 37])
    copied = Gone(parts.start, parts.count, parts.digest, parts.rest.tolist())
    for gone in (whole, parts, copied):
        assert gone.found_in(TEXT)
        for place in (4, 500, 1099):
            assert not gone.found_in([*TEXT[:place], 0, *TEXT[place + 1 :]])
        gone.add(4, TEXT[1100:1200])
        assert gone.found_in(TEXT)
        assert not gone.found_in(TEXT[:1200])


def test_only_the_same_window_goes_on_with_a_text_that_left(
    tmp_path: Path, open_session: Open
) -> None:
    from ggext.runtime import store

    path = tmp_path / "kv.bin"
    first = open_session(**streaming())
    first.evaluate(TEXT[:900])
    store.save(path, first, KEY)
    for other in (streaming("recompute"), streaming(sinks=8), streaming(evict=9), {}):
        session = open_session(**other)
        with pytest.raises(
            store.StateError,
            match="what stays in a full context is another one than when the state",
        ):
            store.restore(path, session, KEY)
        assert (session.used, session.dropped) == (0, 0)
    assert store.restore(path, open_session(**streaming(n_ctx=1024)), KEY) == first.used


def test_a_text_from_which_nothing_left_goes_on_under_any_policy(
    tmp_path: Path, open_session: Open
) -> None:
    from ggext.runtime import store

    path = tmp_path / "kv.bin"
    plain = open_session()
    plain.evaluate(TEXT[:500])
    store.save(path, plain, KEY)
    session = open_session(**streaming())
    assert store.restore(path, session, KEY) == 500
    assert session.evaluate(TEXT[:900]).reused == 500
    assert session.used + session.dropped == 900
    landmark = open_session(**streaming("landmark", n_ctx=700))
    plain.evaluate(TEXT[:560])
    store.save(path, plain, KEY)
    with pytest.raises(
        store.StateError, match="it has 560 tokens, more than the context of 188"
    ):
        store.restore(path, landmark, KEY)


def test_tokens_that_share_positions_are_not_kept_on_disk(
    tmp_path: Path, open_session: Open
) -> None:
    from ggext.runtime import store

    session = open_session(**streaming("self-extend", 3000))
    session.evaluate((TEXT * 2)[:2500])
    with pytest.raises(
        store.StateError, match="of what self-extend makes of it only the text is kept"
    ):
        store.save(tmp_path / "kv.bin", session, KEY)


@pytest.mark.parametrize(
    "account", [None, {}, [], {"selected": -1}, {"selected": 500}, {"selected": "x"}]
)
def test_a_stranger_s_account_of_what_compress_selected_is_refused(
    open_session: Open, account: Any
) -> None:
    session = open_session(**streaming("compress"))
    session.evaluate(TEXT[:900])
    memory = session.memory
    assert memory.layout(session.used, memory.gone, memory.account())
    with pytest.raises(
        ModelError, match="what it tells of the tokens that left the context"
    ):
        memory.layout(session.used, memory.gone, account)


@pytest.mark.parametrize(
    "change",
    [
        {"start": 5},
        {"start": -4},
        {"count": 0},
        {"count": 2**40},
        {"count": None},
        {"digest": "00"},
        {"digest": ""},
        {"digest": 5},
        {"rest": []},
        {"rest": [-1]},
        {"rest": [2**31]},
        {"rest": "x"},
        {"rest": [None]},
    ],
)
def test_a_stranger_s_account_of_what_left_is_refused(
    tmp_path: Path, open_session: Open, change: dict[str, Any]
) -> None:
    from ggext.runtime import store

    session, path = open_session(**streaming()), tmp_path / "kv.bin"
    session.evaluate(TEXT[:900])
    store.save(path, session, KEY)
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[16 : 16 + length])
    if isinstance(change.get("rest"), list) and change["rest"]:
        change = {"rest": change["rest"] * len(document["gone"]["rest"])}
    document["gone"] |= change
    head = json.dumps(document).encode()
    damaged = bytearray(
        data[:12] + struct.pack("<I", len(head)) + head + data[16 + length :]
    )
    repair(damaged)
    path.write_bytes(damaged)
    with pytest.raises(store.StateError, match="is damaged"):
        store.restore(path, session, KEY)


def test_a_state_of_another_length_s_table_is_not_used(tmp_path: Path) -> None:
    """Dynamic NTK: the base grew with the text, and stays when the text is cut."""
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling
    from ggext.runtime import store
    from ggext.runtime.engine import Model, Session, SessionOptions

    convert(ConvertOptions(DEMO_MODEL, tmp_path / "m.gguf", RopeScaling("none")))
    path = tmp_path / "kv.bin"
    with Model.open(tmp_path / "m.gguf") as model:
        options = SessionOptions(n_ctx=1024, dynamic_ntk="rotate")
        with Session(model, options) as first, Session(model, options) as second:
            first.evaluate(TEXT[:600])
            store.save(path, first, KEY)
            assert store.restore(path, second, KEY) == 600
            assert second.cache.regime == first.cache.regime
            first.evaluate(TEXT[:100])
            store.save(path, first, KEY)
            with pytest.raises(
                store.StateError,
                match="the RoPE table is another one than when the state was saved",
            ):
                store.restore(path, second, KEY)
            assert second.used == 600  # as it was


def test_a_state_of_another_kind_is_named(tmp_path: Path, open_session: Open) -> None:
    from ggext.runtime import store

    session = open_session()
    session.evaluate(TEXT[:100])
    store.save(tmp_path / "kv.bin", session, KEY)
    with pytest.raises(
        store.StateError,
        match="the version is another one than when the state was saved",
    ):
        store.restore(tmp_path / "kv.bin", session, KEY | {"the version": "c"})
    with pytest.raises(
        store.StateError, match="100 tokens, more than the context of 64"
    ):
        store.restore(tmp_path / "kv.bin", open_session(n_ctx=64), KEY)
    for other in (
        {"kv_type": "f32"},
        {"flash_attention": True},
    ):  # llama.cpp's own refusals are ours too
        apart = open_session(**other)
        with pytest.raises(store.StateError, match="cannot be put back"):
            store.restore(tmp_path / "kv.bin", apart, KEY)
        assert apart.used == 0
        assert not apart.evaluate(TEXT[:3]).cancelled


def test_a_cache_that_gives_other_logits_is_not_used(
    tmp_path: Path, open_session: Open
) -> None:
    from ggext.runtime import store

    session = open_session()
    session.evaluate(TEXT[:100])
    path = tmp_path / "kv.bin"
    store.save(path, session, KEY)
    data = bytearray(path.read_bytes())
    data[-12_000:-2_000] = bytes(10_000)  # values of the last layer
    repair(data)
    path.write_bytes(data)
    with pytest.raises(store.StateError, match="other logits than the saved one"):
        store.restore(path, session, KEY)
    assert session.used == 0


def repair(data: bytearray) -> None:
    """The checksum that a stranger would write."""
    struct.pack_into("<I", data, 8, zlib.crc32(data[12:]))


def test_an_empty_cache_is_not_saved(tmp_path: Path, open_session: Open) -> None:
    from ggext.runtime import store

    with pytest.raises(ModelError, match="no token to evaluate"):
        store.save(tmp_path / "kv.bin", open_session(), KEY)
    assert not (tmp_path / "kv.bin").exists()


def test_damage_is_found_at_every_place(tmp_path: Path, open_session: Open) -> None:
    from ggext.runtime import store

    session, path = open_session(), tmp_path / "kv.bin"
    session.evaluate(TEXT[:10])
    store.save(path, session, KEY)
    whole = path.read_bytes()
    places = [*range(400), *range(400, len(whole), 997)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 0x55
        path.write_bytes(data)
        with pytest.raises(store.StateError):
            store.restore(path, session, KEY)
    for length in (0, 1, 15, 16, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(store.StateError):
            store.restore(path, session, KEY)
    path.write_bytes(whole)
    assert store.restore(path, session, KEY) == 10


def test_a_strangers_file_with_a_right_checksum_harms_nobody(
    tmp_path: Path, open_session: Open
) -> None:
    """Every 4 bytes of the head, the tokens and the first cells set to what overflows, in turn."""
    from ggext.runtime import store

    session, path = open_session(), tmp_path / "kv.bin"
    session.evaluate(TEXT[:10])
    store.save(path, session, KEY)
    whole = path.read_bytes()
    state = whole.index(whole[-session.snapshot().nbytes :])
    refused = 0
    places = [
        *range(12, 16),
        *range(16, 320, 3),
        *range(state, state + 8 + 8 + 120 + 8 + 12),
    ]
    for place in places:
        for value in (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000):
            data = bytearray(whole)
            struct.pack_into("<I", data, place, value)
            repair(data)
            path.write_bytes(data)
            try:
                store.restore(path, session, KEY)
            except store.StateError:
                refused += 1
    assert refused > 2 * len(
        places
    )  # the sequence's number and parts of the JSON may be anything
    path.write_bytes(whole)
    assert store.restore(path, session, KEY) == 10


def test_the_fingerprint_sees_the_header_the_size_and_the_weights(
    tmp_path: Path, model_path: Path
) -> None:
    from ggext.gguf.open import read_gguf
    from ggext.runtime.store import fingerprint

    def of(data: bytes) -> str:
        (tmp_path / "m.gguf").write_bytes(data)
        return fingerprint(read_gguf(tmp_path / "m.gguf"))

    whole = model_path.read_bytes()
    offset = read_gguf(model_path).data_offset
    weights = bytearray(whole)
    weights[offset] ^= 1
    assert of(whole) == fingerprint(read_gguf(model_path))
    header = whole.replace(b"context_length", b"context_lengtH", 1)
    assert len({of(whole), of(bytes(weights)), of(whole + bytes(32)), of(header)}) == 4


def test_a_session_is_restored_or_read_again_with_a_sentence(
    open_session: Open,
) -> None:
    folder = named("book")
    with Keeper(folder, "demo.gguf", open_session()) as keeper:
        assert keeper.restore()[1] == "a new chat"
        assert keeper.session is not None
        keeper.session.evaluate(TEXT)
        keeper.record(SAID)
        keeper.save_state()
        written = (folder / "kv.bin").stat().st_mtime_ns
        keeper.save_state()  # nothing new: nothing is written
        assert (folder / "kv.bin").stat().st_mtime_ns == written
    with Keeper(folder, "demo.gguf", open_session()) as keeper:
        assert keeper.turns == tuple(SAID)
        assert keeper.restore()[1].startswith("1,500 tokens of KV cache restored in ")
    with Keeper(
        folder, "demo.gguf", open_session(n_ctx=1600)
    ) as keeper:  # of another length, with the same table
        assert keeper.restore()[1].startswith("1,500 tokens of KV cache restored in ")
    with Keeper(folder, "demo.gguf", open_session(kv_type="f32")) as keeper:
        assert keeper.restore()[1] == (
            "the KV type is another one than when the state was saved: the next question reads the "
            "chat again"
        )
    with Keeper(folder, "demo.gguf", open_session(**streaming())) as keeper:
        assert keeper.session is not None
        assert keeper.restore()[1].startswith(
            "it has 1500 tokens, more than the context of 512: the next question reads"
        )
        keeper.session.evaluate(TEXT)
        keeper.save_state()
    with Keeper(folder, "demo.gguf", open_session(**streaming())) as keeper:
        assert keeper.session is not None
        assert keeper.restore()[1].startswith(
            f"{keeper.session.used:,} tokens of KV cache restored in "
        )
        assert keeper.session.used + keeper.session.dropped == 1500
        assert keeper.session.evaluate([*TEXT, 9]).evaluated == 1
    (folder / "kv.bin").write_bytes(b"")
    with Keeper(folder, "demo.gguf", open_session()) as keeper:
        assert keeper.restore()[1].endswith("the next question reads the chat again")
    (folder / "kv.bin").unlink()
    with Keeper(folder, "demo.gguf", open_session()) as keeper:
        assert (
            keeper.restore()[1]
            == "no KV state was saved: the next question reads the chat again"
        )


TURNS = ["--temperature", "0", "--when-full", "turns", "--session", "long", "--ctx"]
STATUS = re.compile(r"read ([\d,]+) .*reused ([\d,]+)")


def converse(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], *questions: str
) -> list[str]:
    """What `ggext chat` shows for typed questions."""
    from ggext.cli import main
    from ggext.cli.chat_input import Asked
    from ggext.screen import terminal

    screen = Script(*questions)
    typed = Asked(None, (), is_chat=True)
    monkeypatch.setattr("ggext.cli.chat.asked", lambda *_, **__: typed)
    monkeypatch.setattr(terminal, "open_screen", lambda _: screen)
    main.main(["chat", *arguments], standalone_mode=False)
    return screen.lines


def reading(lines: list[str]) -> list[tuple[int, int]]:
    """Tokens read and reused by each turn."""
    found = (
        STATUS.search(line.replace(",", "")) for line in lines if line.startswith("=")
    )
    return [(int(match[1]), int(match[2])) for match in found if match]


def test_turns_that_left_stay_away_from_a_chat_that_is_restarted(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so its kept cache is of use: the next turn reads itself alone."""
    questions = [
        f"Leo hides the {thing} below. Where is the {thing}?"
        for thing in ("map", "crown", "hammer") * 5
    ]
    before = converse(monkeypatch, [str(model_path), *TURNS, "160"], *questions)
    assert any("the context was full" in line for line in before)
    with Journal(named("long") / "chat.jsonl", "") as journal:
        left, turns = journal.left, journal.turns
    assert 0 < left < len(turns) == 2 * len(questions)
    after = converse(monkeypatch, [str(model_path), *TURNS, "160"], "Where is the map?")
    assert re.search(
        "session long: 15 questions; [0-9]+ tokens of KV cache restored", after[0]
    )
    assert after[1] == (
        f"- the {left} oldest turns left the context earlier, from “Leo hides the map below. Where "
        "is the ma…” on; the "
        "model does not see them any more, /save keeps them"
    )
    [(read, reused)] = reading(after)
    assert read < 12 < reused


def test_turns_that_left_come_back_into_a_larger_context(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["Leo hides the map below. Where is the map?"] * 12
    converse(monkeypatch, [str(model_path), *TURNS, "160"], *questions)
    after = converse(
        monkeypatch, [str(model_path), *TURNS, "2048"], "Where is the map?"
    )
    assert after[1].endswith(
        "they fit into this one, and the next turn reads the chat again"
    )
    assert sum(reading(after)[0]) > 160
    with Journal(named("long") / "chat.jsonl", "") as journal:
        assert journal.left == 0


def test_the_cache_is_saved_when_losing_it_would_cost_much(open_session: Open) -> None:
    folder = named("long")
    with Keeper(folder, "demo.gguf", open_session()) as keeper:
        assert keeper.session is not None
        keeper.session.evaluate(TEXT[:50])
        keeper.turn_over(20)
        assert not (folder / "kv.bin").exists()
        keeper.turn_over(20)
        assert (folder / "kv.bin").exists()


SAVER = """
import sys
from pathlib import Path
from ggext.runtime import store
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions
options = SessionOptions(n_ctx=512 if sys.argv[3] == "stream" else None, memory=MemoryOptions(sys.argv[3]))
with Model.open(sys.argv[1]) as model, Session(model, options) as session:
    tokens = [1 + i % 250 for i in range(1000)]
    while True:
        session.evaluate(tokens)
        store.save(Path(sys.argv[2]), session, {"the model file": "a", "the version": "b"})
        print(len(tokens), flush=True)
        tokens.append(7)
"""


@pytest.mark.parametrize("policy", ["stop", "stream"])
def test_kill_9_during_a_save_leaves_the_state_before(
    tmp_path: Path, model_path: Path, open_session: Open, policy: WhenFull
) -> None:
    from ggext.runtime import store

    path = tmp_path / "kv.bin"
    for _ in range(3):
        command = [sys.executable, "-c", SAVER, str(model_path), str(path), policy]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as saver:
            assert saver.stdout is not None
            for _ in range(8):
                reported = int(saver.stdout.readline())
            saver.send_signal(signal.SIGKILL)
            rest = saver.stdout.read().split()
        reported = int(rest[-1]) if rest else reported
        session = open_session(**(streaming() if policy == "stream" else {}))
        store.restore(path, session, KEY)
        assert session.used + session.dropped in (reported, reported + 1)
