"""What compress keeps of a text that is longer than its cells: chosen once from the whole text, or
again and again while it is read, in the ways that were tried.

Five codes in a text of a book, each asked for by itself from where the text was read. A reading
takes long: most ways are given the cells of one reading of the whole text, piece by piece, and
choose from them as if they had read. What that leaves out is that a text read in pieces is read
after what was chosen of it, and not after all of it; some ways do read. One thread.
With ``records`` what was measured is not measured again: several processes may fill it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from policies import Text, from_book
from records import add, read

from ggext.quality.statistics import mean, share
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions
from ggext.runtime.likelihood import scores
from ggext.runtime.memory.compress import Compress, _smoothed
from ggext.runtime.prefixes import copied, put_back

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggext.runtime.state import KvBlock

WHOLE = "the whole text"
ONCE = "chosen once, from the whole text"


@dataclass(frozen=True)
class Way:
    """How tokens are chosen again and again. The defaults are compress as it is."""

    # One of so many cells leaves at once.
    leaves: int = 8
    # Whose mean a key is held against: of all keys that were read, or of those in the cache.
    mean: Literal["all", "cache"] = "all"
    # Neighbours of a token that stayed: those it had when it was first chosen, or those next to
    # which it has come to stand.
    neighbours: Literal["first", "now"] = "first"
    # A token keeps the score with which it was first chosen.
    first_score: bool = False
    # Each piece has its share of the cells by its length.
    shares: bool = False
    # The scores of the choice from the whole text: what reading in pieces costs by itself.
    whole_scores: bool = False
    # Reads; else the cells of the whole text's reading are copied.
    reads: bool = False


_BEFORE = "mean and neighbours of the cache"
_NOW = "mean of all keys, first neighbours"
_TRUE = "scores of the whole text"
WAYS = {
    f"{_BEFORE}, a quarter at once": Way(4, "cache", "now"),
    f"{_BEFORE}, an eighth at once": Way(mean="cache", neighbours="now"),
    "mean of all keys, neighbours of the cache": Way(neighbours="now"),
    "the first score stays, mean of the cache": Way(mean="cache", first_score=True),
    "the first score stays, mean of all keys": Way(first_score=True),
    "the same, and each piece has its share": Way(first_score=True, shares=True),
    f"{_NOW}, a quarter at once": Way(4),
    f"{_NOW}, an eighth at once": Way(),
    f"{_NOW}, a sixteenth at once": Way(16),
    f"{_TRUE}, an eighth at once": Way(whole_scores=True),
    f"read: {_BEFORE}, a quarter at once": Way(4, "cache", "now", reads=True),
    f"read: {_NOW}, an eighth at once": Way(reads=True),
    f"read: {_TRUE}, an eighth at once": Way(whole_scores=True, reads=True),
}


class Tried(Compress):
    """compress, with another choice. ``own`` has the place in the text of a token that stayed, or
    the first place of the piece with which it was read, where the choice asks for that."""

    way: Way
    # Of the choice from the whole text, after the first tokens.
    whole: NDArray[np.float64]

    def _scores(
        self, sums: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        way, end = self.way, self.cache.next_position
        if way.whole_scores:
            there = self.gone.count + np.arange(end - self.sinks - self.selected)
            places = np.concatenate([self.own, there])
            at = np.minimum(places, len(self.whole) - 1).astype(int)
            return self.whole[at], places
        if way.mean == "cache":
            sums = self._sum(self.sinks, end)
        if way.neighbours == "now":
            own = self._unlike(sums)
            return _smoothed(own), own
        if not way.first_score:
            return super()._scores(sums)
        new = self._unlike(sums)[self.selected :]
        pieces = np.concatenate([self.own, np.full(len(new), self.gone.count)])
        values = np.concatenate([self.scores, _smoothed(new)])
        if way.shares:
            values = self._ranks(values, pieces, self.gone.count + len(new))
        return values, pieces

    @staticmethod
    def _ranks(
        values: NDArray[np.float64], pieces: NDArray[np.float64], end: int
    ) -> NDArray[np.float64]:
        """The place of each value among those of its piece, as a share of the piece's length."""
        first = np.unique(pieces)
        ranks = np.empty(len(values))
        for start, stop in zip(first, [*first[1:], end], strict=True):
            of_piece = np.flatnonzero(pieces == start)
            order = np.argsort(-values[of_piece], kind="stable")
            ranks[of_piece[order]] = -np.arange(len(order)) / (stop - start)
        return ranks


def pieces(
    path: Path,
    book: Path,
    length: int,
    part: float,
    texts: Sequence[int],
    ways: Sequence[str],
    records: Path,
) -> None:
    """Texts of so many tokens in a ``part`` of their cells. ``ways``: the beginnings of their
    names; none: all."""
    done = {(one["text"], one["way"]) for one in read(records)}
    chosen = [WHOLE, ONCE, *(way for way in WAYS if way.startswith((*ways,) or ""))]
    with Model.open(path, 0) as model:
        for number in texts:
            rest = [way for way in chosen if (number, way) not in done]
            if not rest:
                continue
            text = from_book(model, book, length, number)
            for name, record in measured(model, text, int(part * length), rest):
                add(records, {"text": number, "way": name} | record)
    print(table(length, int(part * length), read(records)))


def measured(
    model: Model, text: Text, cells: int, ways: Sequence[str]
) -> Iterator[tuple[str, dict[str, object]]]:
    """The record of each way."""
    size = len(text.body)
    options = SessionOptions(size + 320, threads=1, memory=MemoryOptions("compress"))
    with Session(model, options) as session:
        session.evaluate(text.body)
        compress = session.memory
        assert isinstance(compress, Compress)
        whole, _ = compress._scores(compress._sum(compress.sinks, size))
        block = session.cache.take(0, size)
        if WHOLE in ways:
            yield WHOLE, asked(session, text)
        if ONCE in ways:
            session.evaluate(text.body)
            compress.reduce(cells)
            yield ONCE, asked(session, text)
    for name in ways:
        if name not in WAYS:
            continue
        memory = MemoryOptions("compress", evict=max(cells // WAYS[name].leaves, 1))
        options = SessionOptions(cells, threads=1, memory=memory)
        with Session(model, options) as session:
            tried = Tried(session.cache, memory)
            tried.way, tried.whole = WAYS[name], whole
            session.memory = tried
            if WAYS[name].reads:
                session.evaluate(text.body)
            else:
                copy(text.body, block, session)
            yield name, asked(session, text)


def copy(tokens: Sequence[int], block: KvBlock, session: Session) -> None:
    """What evaluating the tokens does, with the cells of a block in place of new ones."""
    cache, memory = session.cache, session.memory
    done = 0
    for batch in memory.batches(tokens, 0):
        memory.make_room(len(batch))
        first, end = cache.next_position, done + len(batch)
        places = np.arange(first, first + len(batch), dtype=np.int32)
        cells = block.cells(np.arange(done, end))
        cache.put(cache.rotation().moved(cells, places))
        cache.tokens += batch
        cache.positions += places.tolist()
        done = end


def asked(session: Session, text: Text) -> dict[str, object]:
    """Whether each answer is given, and -ln p a token of it; from where the text was read, also
    where tokens leave for a question."""
    memory = session.memory
    assert isinstance(memory, Compress)
    cells = session.used + memory.selected
    begin = copied(session.cache, memory)
    assert begin is not None
    right, losses = [], []
    for prompt, answer in text.questions:
        put_back(begin, session.cache, memory)
        found = list(scores(session, [*prompt, *answer], len(prompt)))
        right.append(all(bool(one.greedy.all()) for one in found))
        losses.append(float(np.concatenate([one.nll for one in found]).mean()))
    put_back(begin, session.cache, memory)
    return {"right": right, "losses": losses, "cells": cells}


def table(length: int, cells: int, records: Sequence[dict]) -> str:
    once = {r["text"]: np.mean(r["losses"]) for r in records if r["way"] == ONCE}
    lines = [
        f"Texts of {length:,} tokens, {cells} cells",
        "",
        "| what stays | texts | cells in use | right | 95 % | -ln p a token, − once | 95 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (WHOLE, ONCE, *WAYS):
        of_way = [r for r in records if r["way"] == name]
        if not of_way:
            continue
        answers = [float(answer) for r in of_way for answer in r["right"]]
        found = share(answers, [r["text"] for r in of_way for _ in r["right"]])
        apart = mean([np.mean(r["losses"]) - once[r["text"]] for r in of_way])
        wide = f"{apart.low:+.2f} to {apart.high:+.2f}"
        used = np.mean([r["cells"] for r in of_way])
        lines.append(
            f"| {name} | {len(of_way)} | {used:,.0f} | {sum(answers):.0f} of {len(answers)} | "
            f"{100 * found.low:.0f} to {100 * found.high:.0f} % | {apart.value:+.2f} | "
            f"{'' if name == ONCE else wide} |"
        )
    return "\n".join(lines)
