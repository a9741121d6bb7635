"""Every policy for a full context over the same texts: answers, what follows, bytes and CPU time.

Each policy reads a text in the cells that it would have for good: none has seen the whole of it.
Then each question is asked from there, by itself, and the text that follows in the book is scored.
One thread, and CPU time, which is the same beside other programs. With ``records`` what was
measured is kept in a file and not measured again: several processes may fill it.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
from records import add, read

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.data import demo_language as language
from ggext.footprint.planner import Choices
from ggext.quality import tasks
from ggext.quality.prompts import PromptMaker
from ggext.quality.statistics import mean, share
from ggext.quality.texts import filler_of, read_text
from ggext.rope.scaling import RopeScaling
from ggext.runtime import capacity
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions
from ggext.runtime.likelihood import scores
from ggext.runtime.prefixes import copied, put_back
from ggext.runtime.reuse import common_prefix_length

#: Tokens that are scored after a text, and tokens that are written one by one.
FOLLOWING = 128
WRITTEN = 16
WHOLE = "stop, the whole text"
#: Of the cells of the whole text, and the memory.
WAYS: dict[str, tuple[float, MemoryOptions]] = {
    WHOLE: (1, MemoryOptions("stop")),
    "stream, a quarter": (1 / 4, MemoryOptions("stream")),
    "recompute, a quarter": (1 / 4, MemoryOptions("recompute")),
    "landmark, a half": (1 / 2, MemoryOptions("landmark")),
    "landmark, a quarter": (1 / 4, MemoryOptions("landmark")),
    "compress, a half": (1 / 2, MemoryOptions("compress")),
    "compress, a quarter": (1 / 4, MemoryOptions("compress")),
    "compress, an eighth": (1 / 8, MemoryOptions("compress")),
    "compress, an eighth, with passages": (
        1 / 8,
        MemoryOptions("compress", evicted="kept"),
    ),
}
SELF_EXTEND = "self-extend, the whole text"
HEAD = (
    "| policy | right | 95 % | perplexity after it, × whole | 95 % | cache, MiB "
    "| outside, MiB | reading, × whole | a question, CPU s | a token, × whole |"
)


@dataclass(frozen=True)
class Text:
    """A text, its questions with their answers, and what follows it, in tokens."""

    body: list[int]
    questions: list[tuple[list[int], list[int]]]
    following: list[int]


@dataclass(frozen=True)
class Record:
    """What a policy made of a text."""

    model: str
    number: int
    way: str
    right: list[bool]
    # Of the tokens that follow, natural logarithm.
    nll: float
    # Bytes of the cache, and of what is kept outside.
    cache: int
    outside: int
    # CPU seconds.
    reading: float
    question: float
    token: float


def policies(
    path: Path | None,
    book: Path | None,
    length: int,
    texts: Sequence[int],
    records: Path | None,
) -> None:
    """Without a model: the embedded one."""
    with tempfile.TemporaryDirectory() as folder:
        kept = records or Path(folder) / "records"
        name = path.stem if path else "embedded"
        done = {(one.number, one.way) for one in of_model(kept, name)}
        if path is None:
            demo = Path(folder) / "demo.gguf"
            plain = Path(folder) / "plain.gguf"
            convert(ConvertOptions(DEMO_MODEL, demo, RopeScaling("yarn", factor=8)))
            convert(ConvertOptions(DEMO_MODEL, plain, RopeScaling("none")))
            self_extend = {SELF_EXTEND: (1.0, MemoryOptions("self-extend", group=16))}
            measure(demo, "embedded", WAYS, None, length, texts, done, kept)
            measure(plain, "embedded", self_extend, None, length, texts, done, kept)
        else:
            measure(path, name, WAYS, book, length, texts, done, kept)
        print(table(length, of_model(kept, name)))


def measure(
    path: Path,
    name: str,
    ways: dict[str, tuple[float, MemoryOptions]],
    book: Path | None,
    length: int,
    texts: Sequence[int],
    done: set[tuple[int, str]],
    kept: Path,
) -> None:
    """Writes a record of each policy and text that are not done."""
    with Model.open(path, 0) as model:
        for number in texts:
            text = None
            for way, (part, memory) in ways.items():
                if (number, way) in done:
                    continue
                if text is None:
                    text = (
                        from_book(model, book, length, number)
                        if book
                        else of_the_toy(model, length, number)
                    )
                cells = math.ceil(part * length) + (320 if part == 1 else 0)
                record = measured(model, name, number, way, text, cells, memory)
                add(kept, asdict(record))


def from_book(
    model: Model, book: Path, length: int, number: int, after: int = FOLLOWING
) -> Text:
    """Five codes, evenly spread in a part of a book; and how the book goes on for so many tokens
    ``after`` it."""
    sentences = filler_of([read_text(book)])
    started: list[int] = []

    def filler(rng: random.Random) -> Iterator[str]:
        started.append(rng.randrange(len(sentences) * 3 // 4))
        return iter(sentences[started[-1] :])

    prompts = PromptMaker(model)
    source = tasks.Source(prompts.count, filler)
    sample = tasks.make("multikey", source, length, random.Random(1000 + number))
    asked = [
        (prompts.prompt(sample.body, question), prompts.answer(question))
        for question in sample.questions
    ]
    body = asked[0][0][: common_prefix_length(asked[0][0], asked[1][0])]
    end = next(i for i in count(started[-1]) if sentences[i] not in sample.body)
    more = " ".join(sentences[end : end + 40])
    following = model.tokenize(f" {more}", add_special=False)[:after]
    return Text(body, asked, following)


def of_the_toy(model: Model, length: int, number: int) -> Text:
    """24 facts of which five are asked for, and more of the same language."""
    rng = random.Random(f"policies {number}")
    told = language.facts(rng, language.RECALL_FACTS)
    document = language.document(rng, told, length)

    def ids(text: str) -> list[int]:
        return model.tokenize(text, add_special=False, parse_special=True)

    body = ids(f"{language.BOS}{language.USER}{document}\n")
    asked = []
    for fact in rng.sample(told, tasks.DEPTHS):
        question = f"{language.question(fact.key)}{language.END}{language.ASSISTANT}"
        answer = ids(language.answer(fact.key, fact.place))
        asked.append(([*body, *ids(question)], answer))
    return Text(body, asked, ids(f" {language.story(rng, 60)}")[:FOLLOWING])


def measured(
    model: Model,
    name: str,
    number: int,
    way: str,
    text: Text,
    cells: int,
    memory: MemoryOptions,
) -> Record:
    options = SessionOptions(n_ctx=cells, threads=1, memory=memory)
    with Session(model, options) as session:
        start = time.process_time()
        session.evaluate(text.body)
        reading = time.process_time() - start
        outside = sum(map(len, session.memory.blocks_outside()))
        begin = copied(session.cache, session.memory)

        def back() -> None:
            """To where the text was read, also where tokens have left meanwhile."""
            if begin is not None:
                put_back(begin, session.cache, session.memory)

        right: list[bool] = []
        spent: list[float] = []
        for prompt, answer in text.questions:
            back()
            start = time.process_time()
            right.append(is_answered(session, prompt, answer))
            spent.append(time.process_time() - start)
        back()
        nll = loss_after(session, text)
        back()
        token = written(session, text)
        choices = Choices(options.kv_type, session.n_batch, False)
        room = capacity.room(model, choices)
        cache = room.cache(cells) if room else 0
    return Record(
        name,
        number,
        way,
        right,
        nll,
        cache,
        outside,
        reading,
        statistics.mean(spent),
        token,
    )


def is_answered(session: Session, prompt: list[int], answer: list[int]) -> bool:
    """Whether the model says the answer, greedily."""
    parts = scores(session, [*prompt, *answer], len(prompt))
    return all(bool(part.greedy.all()) for part in parts)


def loss_after(session: Session, text: Text) -> float:
    """-ln p a token of what follows the text."""
    parts = scores(session, [*text.body, *text.following], len(text.body) + 1)
    return float(np.concatenate([part.nll for part in parts]).mean())


def written(session: Session, text: Text) -> float:
    """CPU seconds a token, one by one after the text."""
    session.evaluate([*text.body, text.following[0]])
    start = time.process_time()
    for token in text.following[1 : WRITTEN + 1]:
        session.memory.make_room(1)
        session.memory.write(token)
    return (time.process_time() - start) / WRITTEN


def of_model(records: Path, model: str) -> list[Record]:
    every = [Record(**one) for one in read(records)]
    return [one for one in every if one.model == model]


def table(length: int, records: Sequence[Record]) -> str:
    """Of the texts that every policy has read."""
    ways = dict.fromkeys(one.way for one in records)
    common = set.intersection(
        *({one.number for one in records if one.way == way} for way in ways)
    )
    base = {r.number: r for r in records if r.way == WHOLE and r.number in common}
    lines = [
        f"{len(common)} texts of {length:,} tokens",
        "",
        HEAD,
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = sorted(ways, key=[*WAYS, SELF_EXTEND].index)
    for way in order:
        of_way = [one for one in records if one.way == way and one.number in common]
        lines.append(row(way, of_way, base))
    whole = statistics.median(one.reading for one in base.values())
    token = statistics.median(one.token for one in base.values())
    lines += ["", f"The whole text: {whole:.1f} CPU s, a token {1e3 * token:.1f} ms."]
    return "\n".join(lines)


def row(way: str, records: Sequence[Record], base: dict[int, Record]) -> str:
    answers = [float(answer) for one in records for answer in one.right]
    texts = [one.number for one in records for _ in one.right]
    found = share(answers, texts)
    loss = mean([one.nll - base[one.number].nll for one in records])
    reading = statistics.median(o.reading / base[o.number].reading for o in records)
    token = statistics.median(o.token / base[o.number].token for o in records)
    wide = f"{math.exp(loss.low):.3f} to {math.exp(loss.high):.3f}"
    return (
        f"| {way} | {sum(answers):.0f} of {len(answers)} | "
        f"{100 * found.low:.0f} to {100 * found.high:.0f} % | "
        f"{math.exp(loss.value):.3f} | {'' if way == WHOLE else wide} | "
        f"{records[0].cache / 2**20:.1f} | "
        f"{max(one.outside for one in records) / 2**20:.2f} | {reading:.2f} | "
        f"{statistics.median(one.question for one in records):.2f} | {token:.2f} |"
    )
