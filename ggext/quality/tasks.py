"""RULER-like tasks in plain English: needles, chains of variables, common and frequent words.

The kinds of task, the number of needles and the scores are those of RULER (Hsieh et al. 2024); the
texts and templates are our own, so figures are not RULER's published ones. A seed and a length
make the same sample for the same vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from ggext.errors import UsageError
from ggext.quality import words
from ggext.quality.samples import Build, Count, Question, Sample, filled

#: Needles of a text in which each is asked for; their depths are strata.
DEPTHS = 5
_SEVERAL = 4
_CHAIN = 5
_COMMON, _OFTEN, _SELDOM = 10, 30, 3
_INTRODUCTION = "Read the following text. A question about it comes at the end."

Filler = Callable[[Random], Iterator[str]]


@dataclass(frozen=True)
class UserQuestion:
    """A question of the user's own."""

    question: str
    # One of these is enough.
    answers: tuple[str, ...]
    # The words that hold the answer, which are put among others.
    passage: str


@dataclass(frozen=True)
class Source:
    """What tasks are made of: the vocabulary's count of tokens, and the sentences between."""

    # Tokens of a sample's longest prompt, the answer included.
    count: Count
    # Sentences without end, from a generator of random numbers.
    filler: Filler = words.sentences
    # For the task "questions".
    own_questions: tuple[UserQuestion, ...] = ()
    # Of the task "multikey", each of them asked for.
    needles: int = DEPTHS


def make(task: str, source: Source, length: int, rng: Random) -> Sample:
    """A sample of `task` of exactly `length` tokens (at most 1 less). Raises UsageError."""
    maker = _MAKERS.get(task)
    if maker is None:
        raise UsageError(f"the task {task!r} is unknown; known are {', '.join(TASKS)}")
    return filled(maker(source, rng), source.count, length, task)


def _needle(key: str, value: str) -> str:
    return f"The secret code of the {key} is {value}."


def _one_code(key: str) -> tuple[str, str]:
    """Question and opening."""
    return (
        f"What is the secret code of the {key}? Answer with the code alone.",
        f"The secret code of the {key} is",
    )


def _single(source: Source, rng: Random, needles: int = 1) -> Build:
    """Needles evenly spread, moved at random within their share of the text, each asked for."""
    keys = words.names(rng, needles)
    values = words.codes(rng, needles)
    depths = [(i + rng.random()) / needles for i in range(needles)]
    haystack = _haystack(source, rng, list(map(_needle, keys, values)), depths)
    questions = tuple(
        Question(*_one_code(key), (value,), depth)
        for key, value, depth in zip(keys, values, depths, strict=True)
    )
    task = "single" if needles == 1 else "multikey"
    return lambda size, padding: Sample(task, haystack(size, padding), questions)


def _multikey(source: Source, rng: Random) -> Build:
    return _single(source, rng, source.needles)


def _multivalue(source: Source, rng: Random) -> Build:
    (key,) = words.names(rng, 1)
    values = words.codes(rng, _SEVERAL)
    needles = [f"One of the secret codes of the {key} is {value}." for value in values]
    haystack = _haystack(source, rng, needles, _random_depths(rng, _SEVERAL))
    question = Question(
        f"What are all the secret codes of the {key}? Answer with the codes alone.",
        f"The secret codes of the {key} are",
        tuple(values),
        budget=64,
    )
    return lambda size, padding: Sample(
        "multivalue", haystack(size, padding), (question,)
    )


def _multiquery(source: Source, rng: Random) -> Build:
    keys = words.names(rng, _SEVERAL)
    values = words.codes(rng, _SEVERAL)
    depths = _random_depths(rng, _SEVERAL)
    haystack = _haystack(source, rng, list(map(_needle, keys, values)), depths)
    listed = _listed([f"the {key}" for key in keys])
    question = Question(
        f"What are the secret codes of {listed}? Answer with the codes alone.",
        f"The secret codes of {listed} are",
        tuple(values),
        budget=64,
    )
    return lambda size, padding: Sample(
        "multiquery", haystack(size, padding), (question,)
    )


def _variables(source: Source, rng: Random) -> Build:
    """A chain of names, each of which takes its value from the one before."""
    (value,) = words.codes(rng, 1)
    names = [name.upper()[:5] for name in words.invented(rng, _CHAIN)]
    links = [f"Let {names[0]} be {value}."]
    links += [
        f"Let {name} be the same as {before}." for before, name in pairwise(names)
    ]
    depths = sorted(_random_depths(rng, _CHAIN))  # a chain stands in its order
    haystack = _haystack(source, rng, links, depths)
    question = Question(
        f"Which names stand for {value}, directly or through other names? List all of them.",
        f"The {_CHAIN} names that stand for {value} are",
        tuple(names),
        budget=40,
    )
    return lambda size, padding: Sample(
        "variables", haystack(size, padding), (question,)
    )


def _questions(source: Source, rng: Random) -> Build:
    """A question of the user's own; its passage stands somewhere among other text."""
    if not source.own_questions:
        raise UsageError("the task questions needs a file of them")
    chosen = rng.choice(source.own_questions)
    depth = rng.random()
    haystack = _haystack(source, rng, [chosen.passage], [depth])
    question = Question(
        f"{chosen.question} Answer in a few words.",
        "Answer:",
        chosen.answers,
        depth,
        budget=32,
        any_of=True,
    )
    return lambda size, padding: Sample(
        "questions", haystack(size, padding), (question,)
    )


def _common(source: Source, rng: Random) -> Build:
    """Ten words that are listed often among others that are listed seldom."""
    del source
    pool = list(words.THINGS) + list(words.QUALITIES)
    common = rng.sample(pool, _COMMON)
    others = [word for word in pool if word not in common] + words.invented(
        rng, 1 << 14
    )
    seed = rng.random()

    def build(size: int, padding: str) -> Sample:
        seldom = others[: max(1, size // _SELDOM)]
        often = max(_SELDOM + 1, min(_OFTEN, size // (2 * _COMMON)))
        listed = [*seldom * _SELDOM][:size] + common * often
        Random(seed).shuffle(listed)
        text = "\n".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
        return Sample(
            "common", f"Below is a list of words.\n{text}{padding}", (question,)
        )

    question = Question(
        f"What are the {_COMMON} most common words in the list above?",
        f"The {_COMMON} most common words are",
        tuple(common),
        budget=60,
    )
    return build


def _frequent(source: Source, rng: Random) -> Build:
    """Invented words, how often each by Zipf's law; the first rank is a row of dots, the next
    three are asked for."""
    del source
    invented = words.invented(rng, 1 << 12)
    seed = rng.random()

    def build(size: int, padding: str) -> Sample:
        ranked = ["....", *invented]
        # 1/rank² sums to π²/6; the fourth rank must stand above the fifth.
        counts = [
            max(1, round(0.61 * size / rank**2)) for rank in range(1, len(ranked) + 1)
        ]
        listed: list[str] = []
        for word, count in zip(ranked, counts, strict=True):
            if len(listed) >= size + 20:
                break
            listed += [word] * (count + (_SELDOM if word in invented[:3] else 0))
        Random(seed).shuffle(listed)
        text = f"Below is a coded text. Count its words.\n{' '.join(listed)}{padding}"
        return Sample("frequent", text, (question,))

    question = Question(
        "Without the dots, what are the three most frequent words of the coded text above?",
        "The three most frequent words are",
        tuple(invented[:3]),
        budget=50,
    )
    return build


def _haystack(
    source: Source, rng: Random, needles: Sequence[str], depths: Sequence[float]
) -> Callable[[int, str], str]:
    """Makes the text of so many words of filler, with the needles at their depths, between
    sentences."""
    seed = rng.random()
    sentences: list[str] = []
    more = source.filler(Random(seed))
    lengths: list[int] = []
    total = 0

    def haystack(size: int, padding: str) -> str:
        nonlocal total
        while total < size:
            sentences.append(next(more))
            lengths.append(len(sentences[-1].split()))
            total += lengths[-1]
        kept: list[str] = []
        count = 0
        for sentence, length in zip(sentences, lengths, strict=True):
            if count >= size:
                break
            whole = length <= size - count
            part = sentence if whole else " ".join(sentence.split()[: size - count])
            kept.append(part)
            count += length
        return _INTRODUCTION + "\n\n" + _spread(kept, needles, depths) + padding

    return haystack


def _spread(
    sentences: Sequence[str], needles: Sequence[str], depths: Sequence[float]
) -> str:
    at: dict[int, list[str]] = {}
    for needle, depth in zip(needles, depths, strict=True):
        at.setdefault(round(depth * len(sentences)), []).append(needle)
    mixed: list[str] = []
    for i in range(len(sentences) + 1):
        mixed += at.get(i, [])
        mixed += sentences[i : i + 1]
    return " ".join(mixed)


def _random_depths(rng: Random, count: int) -> list[float]:
    return [rng.random() for _ in range(count)]


def _listed(values: Sequence[str]) -> str:
    return f"{', '.join(values[:-1])} and {values[-1]}"


_MAKERS: dict[str, Callable[[Source, Random], Build]] = {
    "multikey": _multikey,
    "single": _single,
    "multivalue": _multivalue,
    "multiquery": _multiquery,
    "variables": _variables,
    "common": _common,
    "frequent": _frequent,
    "questions": _questions,
}
#: The names of all tasks; the first is the usual one.
TASKS = tuple(_MAKERS)
