"""Facts in texts of up to a million tokens, by landmark, in a cache of 512.

Texts of the embedded model's language with 48 facts each (it knows no more things), all asked for.
Three ways: what leaves is kept in memory, on a disk, and in so little memory that the oldest is
forgotten. CPU time, one thread.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.data import demo_language as language
from ggext.rope.scaling import RopeScaling
from ggext.runtime.engine import MemoryOptions, Model, Sampling, Session, SessionOptions
from ggext.runtime.memory.landmark import Landmark
from ggext.runtime.memory.outside import Outside

CACHE = 512
FACTS = len(language.OBJECTS)
#: Tokens at the end of a text, whose reading is timed by itself.
LAST = 5_000
HEAD = (
    "| tokens | kept | right | forgotten tokens | µs a token read | of the last 5,000 "
    "| ms a question | µs a token written | kept, MiB | resident, MiB |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass
class Found:
    """Of all texts of a length."""

    right: int = 0
    # Of facts that were not forgotten.
    asked: int = 0
    forgotten: int = 0
    # CPU seconds; of the last tokens a second a token, summed over texts.
    read: float = 0.0
    last: float = 0.0
    questions: float = 0.0
    written: float = 0.0
    # Tokens, after each other.
    wrote: int = 0
    # Bytes outside.
    kept: int = 0
    resident: float = 0.0


def million(
    lengths: Sequence[int], texts: int, bound: int, ways: Sequence[str]
) -> None:
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.gguf"
        convert(ConvertOptions(DEMO_MODEL, path, RopeScaling("yarn", factor=8)))
        kinds = {
            "memory": MemoryOptions("landmark", evicted_memory=1 << 40),
            "bound": MemoryOptions("landmark", evicted_memory=bound),
            "disk": MemoryOptions("landmark", spill=Path(folder)),
        }
        with Model.open(path, 0) as model:
            for way in ways:
                for length in lengths:
                    found = Found()
                    for number in range(texts):
                        one_text(model, kinds[way], length, number, found)
                    name = f"{bound / 2**20:.0f} MiB" if way == "bound" else way
                    print(row(name, length, texts, found), flush=True)


def one_text(
    model: Model, memory: MemoryOptions, length: int, number: int, found: Found
) -> None:
    rng = random.Random(f"million {length} {number}")
    told = language.facts(rng, FACTS)
    document = language.document(rng, told, length)
    tokens = ids(model, f"{language.BOS}{language.USER}{document}\n")
    options = SessionOptions(n_ctx=CACHE, threads=1, memory=memory)
    with Session(model, options) as session:
        start = time.process_time()
        at: list[tuple[int, float]] = []
        session.evaluate(tokens, lambda done, _: at.append((done, time.process_time())))
        found.read += time.process_time() - start
        # Without the last batch, with which the look-up is.
        end, ended = at[-2]
        begin, began = next(mark for mark in at if mark[0] > len(tokens) - LAST)
        found.last += (ended - began) / (end - begin)
        outside = kept_by(session)
        found.kept = max(found.kept, outside.nbytes)
        for fact in told:
            place = language.count_tokens(document[: document.index(fact.sentence())])
            if place < outside.forgotten.count:
                continue
            found.asked += 1
            found.right += asked(model, session, tokens, fact, found)
        found.forgotten += outside.forgotten.count
        found.resident = max(found.resident, resident())


def asked(
    model: Model,
    session: Session,
    tokens: list[int],
    fact: language.Fact,
    found: Found,
) -> bool:
    question = f"{language.question(fact.key)}{language.END}{language.ASSISTANT}"
    wanted = ids(model, f"{language.answer(fact.key, fact.place)}{language.END}")[:-1]
    start = time.process_time()
    session.evaluate([*tokens, *ids(model, question)])
    middle = time.process_time()
    given = list(session.generate(Sampling(temperature=0), len(wanted)))
    found.questions += middle - start
    found.written += time.process_time() - middle
    found.wrote += len(given)
    return given == wanted


def ids(model: Model, text: str) -> list[int]:
    """Equal ids are one object each, so that a text takes 8 bytes a token."""
    same = [*range(model.n_vocab)]
    found = model.tokenize(text, add_special=False, parse_special=True)
    return [same[token] for token in found]


def kept_by(session: Session) -> Outside:
    assert isinstance(session.memory, Landmark)
    return session.memory.retrieval.outside


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def row(way: str, length: int, texts: int, found: Found) -> str:
    tokens = length * texts
    return (
        f"| {length:,} | {way} | {found.right} of {found.asked} | "
        f"{found.forgotten // texts:,} | {1e6 * found.read / tokens:.1f} | "
        f"{1e6 * found.last / texts:.1f} | "
        f"{1e3 * found.questions / found.asked:.1f} | "
        f"{1e6 * found.written / found.wrote:.0f} | {found.kept / 2**20:.1f} | "
        f"{found.resident:.0f} |"
    )
