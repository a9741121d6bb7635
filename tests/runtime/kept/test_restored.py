"""The KV cache on disk: what it was before comes back, whatever left the context."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_chat import Script
from kept_chats import KEY, SAID, TEXT, Open, streaming

from ggext.chat.journal import Journal
from ggext.chat.session import Keeper, named

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

if TYPE_CHECKING:
    from ggext.runtime.memory import WhenFull

pytestmark = pytest.mark.slow


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


def test_compress_goes_on_choosing_as_it_would_have(
    tmp_path: Path, open_session: Open
) -> None:
    """By the keys of all that was read, which are not in the cache any more."""
    from ggext.runtime import store
    from ggext.runtime.memory.compress import Compress

    first, second = (open_session(**streaming("compress")) for _ in range(2))
    first.evaluate(TEXT[:900])
    store.save(tmp_path / "kv.bin", first, KEY)
    store.restore(tmp_path / "kv.bin", second, KEY)
    for length in (900, 1300):
        memories = []
        for session in (first, second):
            session.evaluate(TEXT[:length])
            assert isinstance(session.memory, Compress)
            memories.append(session.memory)
        for name in ("scores", "own", "total"):
            one, other = (getattr(memory, name) for memory in memories)
            assert one.size > 0
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda block: block[:-8],
        lambda block: block + bytes(8),
        lambda block: np.float64(np.nan).tobytes() + block[8:],
        lambda block: block[:-8] + np.float64(np.inf).tobytes(),
        lambda block: block[:-8] + np.float64(1e300).tobytes(),
        lambda _: b"",
    ],
    ids=["short", "long", "nan", "infinite", "huge", "empty"],
)
def test_compress_takes_no_sums_that_cannot_be(
    open_session: Open, damage: Callable[[bytes], bytes]
) -> None:
    from ggext.errors import ModelError

    session = open_session(**streaming("compress"))
    session.evaluate(TEXT[:900])
    (block,) = session.memory.blocks_outside()
    session.memory.resume(session.memory.account(), [memoryview(block)])
    with pytest.raises(ModelError, match="what it tells of the keys that were read"):
        session.memory.resume(session.memory.account(), [memoryview(damage(block))])


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
    landmark = open_session(**streaming("landmark", n_ctx=700, retrieved=512))
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
    from ggext.cli.chat_input import ChatInput
    from ggext.screen import terminal

    screen = Script(*questions)
    typed = ChatInput(None, (), is_chat=True)
    monkeypatch.setattr("ggext.cli.chat.parse_input", lambda *_, **__: typed)
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
        left, turns = journal.dropped_turns, journal.turns
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
        assert journal.dropped_turns == 0


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
