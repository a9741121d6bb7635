"""Needles in a book, several questions of the same cache: whole, compressed, by other policies.

Each text is read once, whole, and compress keeps shares of that reading; the other policies read it
again, into their own cells. With ``records`` what was measured is kept in a file and not measured
again: several processes may fill it, with texts of their own.
"""

from __future__ import annotations

import itertools
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from records import add, read

from ggext.footprint.cache import Swa
from ggext.quality import tasks
from ggext.quality.needles import ask
from ggext.quality.prompts import PromptMaker
from ggext.quality.samples import Sample
from ggext.quality.statistics import paired, share
from ggext.quality.texts import filler_of, read_text
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions
from ggext.runtime.memory import WhenFull
from ggext.runtime.memory.gone import Gone
from ggext.runtime.reuse import common_prefix_length

WHOLE = "whole:1"


@dataclass(frozen=True)
class Asked:
    """What a run reads and asks."""

    # Tokens of a text.
    length: int
    threads: int
    # Of the whole cache's cells, what compress keeps.
    shares: Sequence[float]
    # The same, a half of them for passages.
    outside: Sequence[float]
    # Such as landmark:0.25.
    policies: Sequence[str]
    # What layers with a sliding window keep.
    swa: Swa

    @property
    def ways(self) -> list[str]:
        """Each with its share of the cells."""
        return [
            WHOLE,
            *(f"compress:{one}" for one in self.shares),
            *(f"compress, half of it for passages:{one}" for one in self.outside),
            *self.policies,
        ]

    def options(
        self, cells: int, memory: MemoryOptions | None = None
    ) -> SessionOptions:
        return SessionOptions(
            n_ctx=cells,
            threads=self.threads,
            memory=memory or MemoryOptions("compress"),
            swa=self.swa,
        )


def needles(
    path: Path,
    book: Path,
    texts: Sequence[int],
    questions: int,
    records: Path | None,
    **asked: object,
) -> None:
    """So many ``questions`` of each of the ``texts``, by their numbers."""
    run = Asked(**asked)  # type: ignore[arg-type]
    sentences = filler_of([read_text(book)])
    with tempfile.TemporaryDirectory() as folder, Model.open(path, 0) as model:
        kept = records or Path(folder) / "records"
        prompts = PromptMaker(model)
        source = tasks.Source(
            prompts.count, lambda rng: from_anywhere(sentences, rng), needles=questions
        )
        for number in texts:
            done = {one["way"] for one in read(kept) if one["text"] == number}
            missing = [way for way in run.ways if way not in done]
            if not missing:
                continue
            rng = random.Random(1000 + number)
            sample = tasks.make("multikey", source, run.length, rng)
            for way, scores in answers(model, prompts, sample, run, missing):
                add(kept, {"text": number, "way": way, "scores": scores})
            print(table(run.length, read(kept)), flush=True)
        print(table(run.length, read(kept)))


def from_anywhere(sentences: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """The book from a place in it on, and again from its beginning."""
    start = rng.randrange(len(sentences))
    return itertools.chain(sentences[start:], itertools.cycle(sentences))


def answers(
    model: Model, prompts: PromptMaker, sample: Sample, run: Asked, ways: Sequence[str]
) -> Iterator[tuple[str, list[float]]]:
    """Of each of the ways the score of each question."""

    def scores(session: Session) -> list[float]:
        return [one.score for one in ask(session, prompts, sample)]

    reading = [way for way in ways if way.split(":")[0] in ("whole", "compress")]
    outside = [way for way in ways if "passages" in way]
    first, second = (prompts.prompt(sample.body, q) for q in sample.questions[:2])
    body = first[: common_prefix_length(first, second)]
    if reading or outside:
        with Session(model, run.options(run.length + 64)) as session:
            session.evaluate(body)
            tokens, whole = session.tokens, session.snapshot()
            for way in reading:
                session.restore(tokens, whole, [*range(len(tokens))], Gone())
                session.compress(_share(way))
                yield way, scores(session)
    for way in outside:
        cells = int(_share(way) * len(body))
        memory = MemoryOptions(
            "compress", evict=128, retrieved=cells // 2, evicted="kept"
        )
        options = run.options(run.length + 64 + cells // 2, memory)
        with Session(model, options) as session:
            session.restore(tokens, whole, [*range(len(tokens))], Gone())
            session.compress((cells - cells // 2) / len(tokens))
            yield way, scores(session)
    for way in ways:
        if way in reading or way in outside:
            continue
        policy = cast("WhenFull", way.split(":")[0])
        cells = math.ceil(_share(way) * run.length)
        with Session(model, run.options(cells, MemoryOptions(policy))) as session:
            yield way, scores(session)


def _share(way: str) -> float:
    return float(way.split(":")[1])


def table(length: int, records: Sequence[dict]) -> str:
    """Of the texts that all ways have read; differences are of the same questions."""
    ways = dict.fromkeys(one["way"] for one in records)
    of_way = {
        way: {one["text"]: one["scores"] for one in records if one["way"] == way}
        for way in ways
    }
    common = sorted(set.intersection(*map(set, of_way.values())))
    if not common:
        return ""
    right = {
        way: {(t, i): score for t in common for i, score in enumerate(texts[t])}
        for way, texts in of_way.items()
    }
    lines = [
        f"{len(common)} texts of {length:,} tokens",
        "",
        "| cache | cells | right | 95 % | of the whole cache's | − whole, 95 % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, scores in right.items():
        texts = {item: item[0] for item in scores}
        found = share([*scores.values()], [*texts.values()])
        apart = paired(right[WHOLE], scores, texts)
        ratio = sum(scores.values()) / max(sum(right[WHOLE].values()), 1)
        compared = (
            "| "
            if way == WHOLE or apart is None
            else f"{ratio:.2f} | {apart.low:+.2f} to {apart.high:+.2f}"
        )
        lines.append(
            f"| {way.split(':')[0]} | {math.ceil(_share(way) * length):,} | "
            f"{sum(scores.values()):.0f} of {len(scores)} | {100 * found.low:.0f} to "
            f"{100 * found.high:.0f} % | {compared} |"
        )
    return "\n".join(lines)
