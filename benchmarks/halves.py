"""What a half of a text loses by which of its tokens stay: answers, and the text that follows.

Each text is read once, whole, and halved from there in each way: by KeyDiff's score with more or
fewer of the most recent tokens kept for certain, closed up or at their own places, and by recency
alone. One thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from policies import Text, from_book, is_answered, loss_after
from records import add, read

from ggext.quality.statistics import mean
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions
from ggext.runtime.memory.compress import Compress
from ggext.runtime.memory.gone import Gone

FOLLOWING = 256


@dataclass(frozen=True)
class Way:
    """What stays besides the first tokens."""

    # The most recent tokens, which stay for certain.
    recent: int
    # Whether tokens close up, or stand at their own places.
    closed: bool = True


_ALL = 1 << 30
WAYS: dict[str, Way | None] = {
    "the whole text": None,
    "compress: the 64 most recent, the others by score": Way(64),
    "the 192 most recent": Way(192),
    "the 384 most recent": Way(384),
    "the 576 most recent": Way(576),
    "the 64 most recent, own places": Way(64, closed=False),
    "the 384 most recent, own places": Way(384, closed=False),
    "the 480 most recent, own places": Way(480, closed=False),
    "the 576 most recent, own places": Way(576, closed=False),
    "the most recent only (stream)": Way(_ALL),
    "the most recent only, own places": Way(_ALL, closed=False),
}


def halves(
    path: Path, book: Path, length: int, texts: Sequence[int], records: Path
) -> None:
    """With ``records`` that are there nothing is measured again."""
    done = {(one["text"], one["way"]) for one in read(records)}
    with Model.open(path, 0) as model:
        for number in texts:
            if all((number, way) in done for way in WAYS):
                continue
            text = from_book(model, book, length, 100 + number, FOLLOWING)
            size = len(text.body)
            options = SessionOptions(
                n_ctx=size + 400, threads=1, memory=MemoryOptions("compress")
            )
            with Session(model, options) as session:
                session.evaluate(text.body)
                tokens, whole = session.tokens, session.snapshot()
                for name, way in WAYS.items():
                    if (number, name) in done:
                        continue
                    session.restore(tokens, whole, [*range(size)], Gone())
                    record = measured(session, text, way)
                    add(records, {"text": number, "way": name} | record)
    print(table(length, read(records)))


def measured(session: Session, text: Text, way: Way | None) -> dict[str, object]:
    """Questions first: of what they put into the cache nothing is left then."""
    if way is not None:
        halve(session, way)
    right = [is_answered(session, *question) for question in text.questions]
    return {"right": right, "nll": loss_after(session, text)}


def halve(session: Session, way: Way) -> None:
    memory, cache = session.memory, session.cache
    assert isinstance(memory, Compress)
    start, tokens = memory.sinks, len(cache.tokens)
    cells = tokens // 2
    end = tokens - min(way.recent, cells - start)
    scores, own = memory._scores(memory._sum(start, tokens))
    stays = cells - start - (tokens - end)
    chosen = np.sort(np.argsort(-scores[: end - start], kind="stable")[:stays])
    memory.gone.add(start, cache.tokens[start:end])
    if way.closed:
        cache.condense(start, end, 0, chosen)
    else:
        leaves = np.ones(end - start, np.bool_)
        leaves[chosen] = False
        for place in np.flatnonzero(leaves).tolist():
            cache.remove(start + place, start + place + 1)
        del cache.tokens[start:end], cache.positions[start:end]
    memory.scores, memory.own = scores[chosen], own[chosen]


def table(length: int, records: Sequence[dict]) -> str:
    base = {r["text"]: r["nll"] for r in records if r["way"] == "the whole text"}
    lines = [
        f"Texts of {length:,} tokens, {FOLLOWING} tokens after each",
        "",
        "| what stays | texts | right | perplexity after it, × whole | 95 % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, way in WAYS.items():
        of_way = [r for r in records if r["way"] == name]
        if not of_way:
            continue
        answers = [answer for r in of_way for answer in r["right"]]
        right = f"{sum(answers)} of {len(answers)}" if answers else "not asked"
        loss = mean([r["nll"] - base[r["text"]] for r in of_way])
        wide = f"{math.exp(loss.low):.3f} to {math.exp(loss.high):.3f}"
        lines.append(
            f"| {name} | {len(of_way)} | {right} | {math.exp(loss.value):.3f} "
            f"| {wide if way else ''} |"
        )
    return "\n".join(lines)
