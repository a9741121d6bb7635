"""A text that leaves its context for another one is not read again when it comes back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")
pytest.importorskip("jinja2")

from ggext import Model as Program  # noqa: E402
from ggext import PrefixOptions, Sampling, Settings  # noqa: E402
from ggext.demo import sample_text  # noqa: E402
from ggext.errors import UsageError  # noqa: E402
from ggext.runtime import prefixes  # noqa: E402
from ggext.runtime.answering import Question  # noqa: E402
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions  # noqa: E402
from ggext.runtime.memory import WhenFull  # noqa: E402
from ggext.runtime.memory.options import Evicted  # noqa: E402
from ggext.runtime.prefixes import Prefixes  # noqa: E402
from ggext.runtime.worker import Worker  # noqa: E402

GREEDY = Sampling(temperature=0)
OPTIONS = SessionOptions(n_ctx=1024, n_batch=64)
NOTHING = PrefixOptions(memory=0)
TITLE = "Write a title of three words for a chat about a map. " * 8


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def some(name: str, count: int) -> list[int]:
    rng = random.Random(name)
    return [rng.randrange(10, 250) for _ in range(count)]


LONG, SIDE = some("long", 600), some("side", 100)


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    with Model.open(demo_gguf) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with Session(model, OPTIONS, Prefixes()) as session:
        yield session


def reused(session: Session, *texts: Sequence[int]) -> list[int]:
    return [session.evaluate(text).reused for text in texts]


def told(program: Program, *, long: str) -> tuple[list[str], int, int]:
    """The answers of long, title, long; what the last one read, and of how much."""
    turns = [user(long)]
    replies = [program.chat(turns, sampling=GREEDY, max_tokens=20)]
    turns += [
        {"role": "assistant", "content": replies[0].text()},
        user("Where is the map?"),
    ]
    replies.append(program.chat([user(TITLE)], sampling=GREEDY, max_tokens=20))
    replies.append(program.chat(turns, sampling=GREEDY, max_tokens=20))
    texts = [reply.text() for reply in replies]
    assert replies[2].prefill is not None
    return texts, replies[2].prefill.reused, program.count_chat([user(long)])


@pytest.mark.parametrize(
    ("parallel", "isolated", "cache"),
    [
        (1, False, PrefixOptions()),
        (2, False, PrefixOptions()),
        (2, False, NOTHING),  # the other context stands empty
        (1, True, PrefixOptions()),
    ],
)
def test_a_side_request_does_not_evict_a_long_chat(
    demo_gguf: Path, parallel: int, isolated: bool, cache: PrefixOptions
) -> None:
    """2 of 1,810 tokens were reused."""
    settings = Settings(parallel=parallel, cache=cache)
    long = sample_text(1200)
    with Program(demo_gguf, settings=settings, isolated=isolated) as program:
        texts, count, of = told(program, long=long)
    assert count >= 0.99 * of > 1000
    with Program(demo_gguf, settings=Settings(cache=NOTHING)) as program:
        assert told(program, long=long)[:2] == (texts, min(2, count))


def test_what_is_put_back_gives_the_same_logits(session: Session, model: Model) -> None:
    session.evaluate(LONG)
    said = [*session.generate(GREEDY, 30)]
    text = [*LONG, *said[:-1], *some("next", 40)]
    with Session(model, OPTIONS) as other:
        other.evaluate(LONG)
        assert [*other.generate(GREEDY, 30)] == said
        other.evaluate(text)
        assert reused(session, SIDE, text) == [0, 629]
        assert (session.last_logits() == other.last_logits()).all()
        assert [*session.generate(GREEDY, 30)] == [*other.generate(GREEDY, 30)]


def test_a_seed_is_repeatable_over_what_is_put_back(
    session: Session, model: Model
) -> None:
    session.evaluate(LONG, repeatable=True)
    session.evaluate(SIDE, repeatable=True)
    prefill = session.evaluate([*LONG, *SIDE], repeatable=True)
    assert prefill.reused == 576  # the whole batches
    with Session(model, OPTIONS) as other:
        other.evaluate([*LONG, *SIDE])
        assert (session.last_logits() == other.last_logits()).all()


def test_several_texts_take_turns_and_none_sees_another(
    session: Session, model: Model
) -> None:
    """A random walk: each text's logits are those of an empty cache."""
    rng = random.Random(0)
    texts = [some(f"text {i}", rng.randrange(70, 500)) for i in range(5)]
    texts.append([*texts[0][:300], *some("branch", 200)])
    known: set[int] = set()
    with Session(model, OPTIONS) as fresh:
        for step in range(25):
            at = rng.randrange(len(texts))
            text = texts[at] = [
                *texts[at],
                *some(f"more {step}", rng.choice([0, 3, 20])),
            ]
            count = session.evaluate(text).reused
            assert count >= len(text) - 130 or at not in known
            known.add(at)
            fresh.clear()
            fresh.evaluate(text)
            wanted = fresh.last_logits()
            assert np.abs(session.last_logits() - wanted).max() < 1e-3 * np.ptp(wanted)


def test_a_short_text_or_a_small_change_is_not_copied(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "copied", lambda *_: pytest.fail("it was copied"))
    reused(session, some("short", 60), LONG, [*LONG[:550], *SIDE])


def test_the_budget_is_kept_and_the_oldest_go(model: Model) -> None:
    with Session(model, OPTIONS, Prefixes()) as session:
        session.evaluate(LONG)
        size = session.cache.cells.size
    kept = Prefixes(PrefixOptions(memory=int(2.5 * size)))
    with Session(model, OPTIONS, kept) as session:
        texts = [some(f"long {i}", 600) for i in range(4)]
        reused(session, *texts)
        assert [kept.hold(text) for text in texts] == [0, 600, 600, 0]
        assert reused(session, texts[0], texts[1]) == [0, 0]  # 1 left for 3
        assert [kept.hold(text) > 0 for text in texts] == [True, False, False, True]
        too_long = some("too long", 1000)
    small = Prefixes(PrefixOptions(memory=size // 2))
    with Session(model, OPTIONS, small) as session:
        reused(session, too_long, SIDE)
        assert small.hold(too_long) == 0


def test_what_memory_does_not_hold_goes_to_disk(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    kept = Prefixes(PrefixOptions(memory=0, folder=folder))
    with Session(model, OPTIONS, kept) as session:
        assert reused(session, LONG, SIDE, [*LONG, 7]) == [0, 0, 600]
        assert [*folder.iterdir()] == []  # no one else can open it
        kept.close()
        assert reused(session, SIDE) == [0]
    little = Prefixes(PrefixOptions(memory=0, folder=folder, disk=1000))
    with Session(model, OPTIONS, little) as session:
        assert reused(session, LONG, SIDE, [*LONG, 7]) == [0, 0, 0]


def test_what_gives_other_logits_is_read_again(
    session: Session, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is wrong, as memory can be."""
    copied = prefixes.copied

    def damaged(*caches: Any) -> Any:
        copy = copied(*caches)
        assert copy is not None
        cells = copy.cells.copy()
        cells[len(cells) // 2 :] = 0
        return replace(copy, cells=cells)

    monkeypatch.setattr(prefixes, "copied", damaged)
    assert reused(session, LONG, SIDE, [*LONG, 7]) == [0, 0, 0]
    with Session(model, OPTIONS) as other:
        other.evaluate([*LONG, 7])
        assert (session.last_logits() == other.last_logits()).all()


@pytest.mark.parametrize(
    ("policy", "evicted"),
    [
        ("stream", None),
        ("recompute", None),
        ("landmark", None),
        ("self-extend", None),
        ("compress", None),
        ("compress", "kept"),
    ],
)
def test_a_text_that_has_left_its_window_in_part_comes_back(
    model: Model, policy: WhenFull, evicted: Evicted | None
) -> None:
    """What a policy made of it is put back as it was: the same answer as without a side request."""
    memory = MemoryOptions(policy, retrieved=64, evicted=evicted)
    options = SessionOptions(
        n_ctx=1024 if policy == "self-extend" else 384, memory=memory
    )
    more = [*LONG, *some("more", 30)]
    answers = []
    for side in (False, True):
        with Session(model, options, Prefixes()) as session:
            session.evaluate(LONG)
            if side:
                session.evaluate(SIDE)
            prefill = session.evaluate(more)
            assert prefill.reused == len(LONG)
            answers.append((session.dropped, [*session.generate(GREEDY, 20)]))
    assert answers[0] == answers[1]
    assert (answers[0][0] > 0) is (policy != "self-extend")


def test_a_cancel_while_texts_are_exchanged_leaves_the_session_right(
    session: Session, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each call of the exchange: what comes after it is as if nothing had been."""
    with Session(model, OPTIONS) as other:
        other.evaluate([*LONG, 7])
        wanted = other.last_logits()
    append_one, left = session.cache.append_one, 0

    def cancelling(token: int) -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            session.cancel()
        return append_one(token)

    monkeypatch.setattr(session.cache, "append_one", cancelling)
    for at in range(1, 4):
        session.evaluate(LONG)
        left = at
        session.evaluate(SIDE)
        session.evaluate([*LONG, 7])
        left = 0
        session.evaluate([*LONG, 7])
        assert (session.last_logits() == wanted).all() or np.allclose(
            session.last_logits(), wanted, atol=1e-3 * np.ptp(wanted)
        )


def test_the_context_is_chosen_by_what_it_costs_to_lose(model: Model) -> None:
    chats = [some(f"chat {i}", 500) for i in range(2)]
    sessions = [Session(model, OPTIONS) for _ in range(3)]
    with Worker(sessions) as worker:
        for text in (*chats, SIDE):
            assert len([*worker.ask(Question(text, GREEDY, 1))]) <= 1
        assert sorted(session.used for session in sessions) == [100, 500, 500]
        titles = [some(f"title {i}", 80) for i in range(4)]
        for text in titles:
            list(worker.ask(Question(text, GREEDY, 1)))
        assert sorted(session.used for session in sessions) == [80, 500, 500]
        for text in chats:
            answering = worker.ask(Question([*text, 7], GREEDY, 1))
            list(answering)
            assert answering.prefill is not None
            assert answering.prefill.reused == 500


def test_a_question_waits_for_the_context_that_has_its_long_text(model: Model) -> None:
    """It took an empty one, and read everything again."""
    options = replace(OPTIONS, n_ctx=2048)
    text = some("document", 1500)
    with Worker([Session(model, options) for _ in range(2)]) as worker:
        first = worker.ask(Question([*text, 5], GREEDY, 3))
        second = worker.ask(Question([*text, 6], GREEDY, 3))
        short = worker.ask(Question([*SIDE, 5], GREEDY, 3))
        for answering in (first, second, short):
            list(answering)
        assert second.prefill is not None
        assert second.prefill.reused == 1500
        assert [session.used > 1000 for session in worker.sessions] == [True, False]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"memory": -1}, "memory is -1"),
        ({"folder": Path("/no/such/folder")}, "no folder"),
        ({"disk": 5}, "needs a folder"),
        ({"memory": "1G"}, "memory is '1G'"),
    ],
)
def test_wrong_budgets_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        PrefixOptions(**fields)
