"""Random walks through what a session is asked to do: under each policy the account of the text
stays true.

Extending, cutting, changing the middle, going on, asking again, cancelling at any place; in caches
so small that tokens leave all the time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from sliding_models import ARCHITECTURES, windowed

from ggext.errors import ContextFullError, UsageError
from ggext.footprint.cache import Swa

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session, SessionOptions  # noqa: E402
from ggext.runtime.memory import POLICIES, WhenFull  # noqa: E402
from ggext.runtime.memory.options import Evicted  # noqa: E402
from ggext.runtime.memory.self_extend import SelfExtend  # noqa: E402

LONGEST = 700
WAYS = [*((policy, None) for policy in POLICIES), ("compress", "kept")]
SINKS = 4


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    with Model.open(demo_gguf) as model:
        yield model


def opened(
    model: Model,
    policy: WhenFull,
    evicted: Evicted | None = None,
    swa: Swa = "auto",
) -> Session:
    n_ctx = {"self-extend": 900, "stop": 512}.get(policy, 192)
    memory = MemoryOptions(policy, group=4, retrieved=48, evicted=evicted)
    made = SessionOptions(
        n_ctx=n_ctx, n_batch=32, kv_type="f32", memory=memory, swa=swa
    )
    return Session(model, made)


class Walk:
    """A session, and the text that it was told last; ``whole``: it was not cancelled on the way."""

    def __init__(self, session: Session, rng: random.Random) -> None:
        self.session, self.rng = session, rng
        self.text: list[int] = self.words(100)
        self.whole = False

    def words(self, count: int) -> list[int]:
        return [self.rng.randrange(3, 250) for _ in range(count)]

    def step(self) -> None:
        rng, text = self.rng, self.text
        at = rng.randrange(1, len(text) + 1)
        how = rng.choice(
            ["on", "on", "on", "cut", "middle", "again", "answer", "answer", "clear"]
        )
        if how == "on":
            text = text + self.words(rng.choice([1, 5, 40, 250]))
        elif how == "cut":
            text = text[:at]
        elif how == "middle":
            text = [*text[: at - 1], *self.words(2), *text[at:]]
        elif how == "clear":
            self.session.clear()
        elif how == "answer" and self.whole:
            self.answer()
            return
        self.text = text[:LONGEST]
        self.read()

    def read(self) -> None:
        stop_at = (
            self.rng.randrange(len(self.text)) if self.rng.random() < 0.25 else None
        )

        def progress(done: int, _total: int) -> None:
            if stop_at is not None and done >= stop_at:
                self.session.cancel()

        limit = self.session.memory.limit
        if limit is not None and len(self.text) > limit:
            before = self.session.tokens
            with pytest.raises(ContextFullError, match="the context is full"):
                self.session.evaluate(self.text)
            assert self.session.tokens == before  # nothing is changed, nothing is lost
            self.text, self.whole = list(before) or self.words(5), False
            return
        prefill = self.session.evaluate(self.text, progress)
        self.session.resume()
        self.whole = not prefill.cancelled
        assert prefill.reused + prefill.evaluated <= len(self.text)
        assert prefill.cancelled or prefill.reused + prefill.evaluated == len(self.text)

    def answer(self) -> None:
        most = self.rng.choice([1, 10, 80])
        stop_at = self.rng.randrange(1, 2 * most)
        generation = self.session.generate(
            Sampling(temperature=3, seed=self.rng.randrange(99)), most
        )
        said = []
        for token in generation:
            said.append(token)
            if len(said) == stop_at:
                self.session.cancel()
        self.session.resume()
        generation.close()
        self.text = [*self.text, *said][: self.session.used + self.session.dropped]

    def check(self) -> None:
        """What is cached and what is gone are the text, as far as it was read."""
        session, gone = self.session, self.session.memory.gone
        read = session.used + session.dropped
        assert read == len(self.text) if self.whole else read <= len(self.text)
        start = gone.start if gone.count else session.used
        assert list(session.tokens[:start]) == self.text[:start]
        assert list(session.tokens[start:]) == self.text[start + gone.count : read]
        if gone.count:
            assert gone.start == SINKS
            assert gone.found_in(self.text)
        places = session.cache.positions
        last = (
            session.memory.positions
            if isinstance(session.memory, SelfExtend)
            else session.n_ctx
        )
        assert len(places) == session.used <= session.n_ctx
        assert places == sorted(places)
        assert not places or 0 <= places[0] <= places[-1] < last
        if session.memory.options.when_full not in ("stop", "recompute"):
            cells = session.cache.take(0, session.n_ctx).positions.tolist()
            assert set(places) <= set(cells)
            assert len(cells) <= session.n_ctx


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("policy", "evicted"), WAYS)
def test_no_token_is_ever_lost_without_an_account(
    model: Model, policy: WhenFull, evicted: Evicted | None, seed: int
) -> None:
    with opened(model, policy, evicted) as session:
        walk = Walk(session, random.Random(f"{policy} {seed}"))
        for _ in range(40):
            walk.step()
            walk.check()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("swa", ["full", "small"])
def test_nor_where_layers_see_a_window(tmp_path: Path, arch: str, swa: Swa) -> None:
    """`check` takes all cells out, which needs those of every layer to be there."""
    if arch == "olmo2" and swa == "small":
        pytest.skip("all of its two layers slide")
    with Model.open(windowed(tmp_path, arch)) as model:
        for policy, evicted in WAYS:
            with opened(model, policy, evicted, swa) as session:
                walk = Walk(session, random.Random(f"{arch} {policy}"))
                for _ in range(15):
                    walk.step()
                    walk.check()


def test_a_slide_that_is_cancelled_at_once_leaves_nothing_that_is_called_gone(
    model: Model,
) -> None:
    """recompute empties the cache before it reads the window again."""
    with opened(model, "recompute") as session:
        session.evaluate(list(range(3, 190)))
        session.cancel()
        assert not session.memory.make_room(30)
        session.resume()
        assert (session.used, session.dropped) == (0, 0)


@pytest.mark.parametrize("policy", ["stop", "recompute"])
def test_what_is_read_anew_is_a_fresh_evaluation_of_what_stays(
    model: Model, policy: WhenFull
) -> None:
    made = SessionOptions(n_ctx=512, n_batch=64, kv_type="f32")
    with opened(model, policy) as session, Session(model, made) as fresh:
        walk = Walk(session, random.Random(policy))
        compared = 0
        for _ in range(40):
            walk.step()
            if not (walk.whole and session.cache.has_logits):
                continue
            fresh.clear()
            fresh.evaluate(session.tokens)
            wanted = fresh.last_logits()
            assert np.abs(session.last_logits() - wanted).max() < 1e-3 * np.ptp(wanted)
            compared += 1
        assert compared > 15


@pytest.mark.parametrize(
    ("policy", "evicted", "smallest"),
    [
        ("landmark", None, 4 + 48 + 16 + 16),
        ("compress", None, 4 + 16 + 8 + 1),
        ("compress", "kept", 4 + 16 + 16 + 1 + 48),
    ],
)
def test_the_smallest_contexts_hold_a_text_of_any_length(
    model: Model, policy: WhenFull, evicted: Evicted | None, smallest: int
) -> None:
    """From the smallest context that is not refused upward: a window that is not quite full when
    tokens must leave lost its place (IndexError) in contexts just above the smallest."""
    rng = random.Random(policy)
    memory = MemoryOptions(policy, evict=16, retrieved=48, evicted=evicted)
    with pytest.raises(
        UsageError, match=f"need a context of {smallest} tokens or more"
    ):
        Session(model, SessionOptions(n_ctx=smallest - 1, n_batch=32, memory=memory))
    for n_ctx in range(smallest, smallest + 40, 3):
        with Session(
            model, SessionOptions(n_ctx=n_ctx, n_batch=32, memory=memory)
        ) as session:
            for length in rng.sample(range(n_ctx, 3 * n_ctx), 3):
                text = [rng.randrange(3, 250) for _ in range(length)]
                session.evaluate(text)
                assert session.used + session.dropped == length
                answer = list(session.generate(Sampling(temperature=3, seed=1), 20))
                assert session.used + session.dropped >= length + len(answer) - 1


@pytest.mark.parametrize("policy", POLICIES)
def test_tiny_contexts_are_refused_or_run(model: Model, policy: WhenFull) -> None:
    """A context of one token ended the process where a policy has a second sequence."""
    for n_ctx in (1, 2, 5, 6, 8):
        try:
            options = SessionOptions(n_ctx=n_ctx, memory=MemoryOptions(policy))
            with Session(model, options) as session:
                session.evaluate([*range(3, 23)])
                assert session.dropped >= 20 - n_ctx
        except (UsageError, ContextFullError):
            continue
