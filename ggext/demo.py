"""What context extension does, measured on the embedded model through llama.cpp.

The model was trained on 256 tokens. For each method and length a file is baked, verified and asked
for facts in texts that fill the length; perplexity by position is measured too. Every figure is
measured in the run that prints it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.data import demo_language as language
from ggext.errors import ModelError, UsageError
from ggext.quality.statistics import Estimate, share
from ggext.rope.scaling import Method, RopeScaling
from ggext.verify import verify

if TYPE_CHECKING:
    from ggext.runtime.engine import SessionOptions

TRAINED = 256
LENGTHS = (256, 512, 1024, 2048)
METHODS: tuple[Method, ...] = ("none", "linear", "ntk", "yarn")
QUESTIONS = 50
_QUESTIONS_A_TEXT = 5
_LONGEST_ANSWER = 12
_PERPLEXITY_TEXTS = 12
#: Of the memory that the longest texts take, in which they are asked about once more.
SHARE = 0.25


@dataclass(frozen=True)
class Recall:
    """How many answers were right to the letter, of a method at a length."""

    method: Method
    # Tokens of the texts.
    length: int
    # The share with its interval; the questions of a text are not independent of each other.
    share: Estimate


@dataclass(frozen=True)
class Perplexity:
    """``values``: one for each ``TRAINED`` tokens of position, mean over texts."""

    method: Method
    values: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """One question at four times the trained context, and what both files answer."""

    question: str
    right: str
    answers: Mapping[Method, str]


@dataclass(frozen=True)
class DemoResult:
    recalls: Sequence[Recall]
    perplexities: Sequence[Perplexity]
    # YaRN at the longest length, the text compressed into `SHARE` of its memory.
    compressed: Recall
    example: Example
    files: int

    def recall(self, method: Method, length: int) -> float:
        return next(
            r.share.value
            for r in self.recalls
            if (r.method, r.length) == (method, length)
        )


class Watcher:
    """Hears how far `run` has come; does nothing by itself."""

    def step(self, name: str) -> None:
        """The next part of the work begins."""

    def advance(self, tokens: int) -> None:
        """So many tokens more were read, of `work` in all."""

    def row(self, method: Method, recalls: Sequence[Recall]) -> None:
        """A method was asked at all of `LENGTHS`."""


def work(questions: int) -> int:
    """The tokens that `run` reads."""
    tokens_a_text = len(METHODS) * sum(LENGTHS[1:]) + LENGTHS[0]
    tokens_a_text += LENGTHS[-1]  # compressed
    return text_count(questions) * tokens_a_text + 2 * _PERPLEXITY_TEXTS * LENGTHS[-1]


def text_count(questions: int) -> int:
    """The texts that so many questions are asked about."""
    return -(-questions // _QUESTIONS_A_TEXT)


def bake(folder: Path, method: Method, length: int) -> Path:
    """The embedded model for ``length`` tokens, held to its recipe before it is used."""
    factor = length / TRAINED
    path = folder / f"demo-{method}-{length}.gguf"
    if factor == 1 or method == "none":
        rope = RopeScaling(
            "none", context=length
        )  # the file admits the length and scales nothing
    else:
        rope = RopeScaling(method, factor=factor)
    convert(ConvertOptions(DEMO_MODEL, path, rope, force=True))
    report = verify(path)
    if not report.passed:
        raise ModelError(f"{path} does not do what was asked: {report.checks}")
    return path


def run(
    folder: Path,
    questions: int = QUESTIONS,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> DemoResult:
    """Bake, verify and measure. ``questions``: for each figure. Needs the extra ``run``."""
    watcher = watcher or Watcher()
    recalls: list[Recall] = []
    answers: dict[Method, list[str]] = {}
    samples = {length: list(_samples(seed, length, questions)) for length in LENGTHS}
    for method in METHODS:
        row: list[Recall] = []
        for length in LENGTHS:
            if length == TRAINED and method != "none":
                row.append(replace(recalls[0], method=method))  # the same file
                continue
            watcher.step(f"{method} at {length:,} tokens")
            replies = list(_ask(bake(folder, method, length), samples[length], watcher))
            row.append(Recall(method, length, _right(replies, samples[length])))
            if length == 4 * TRAINED:
                answers[method] = replies
        recalls += row
        watcher.row(method, row)
    perplexities: list[Perplexity] = []
    for method in ("none", "yarn"):
        watcher.step(f"{method}: perplexity by position")
        path = bake(folder, method, LENGTHS[-1])
        values = measure_perplexity(path, LENGTHS[-1], seed, watcher)
        perplexities.append(Perplexity(method, values))
    return DemoResult(
        recalls,
        perplexities,
        _compressed(folder, samples[LENGTHS[-1]], watcher),
        _example(samples[4 * TRAINED], answers),
        len(list(folder.glob("demo-*.gguf"))),
    )


def _compressed(
    folder: Path, samples: list[language.RecallSample], watcher: Watcher
) -> Recall:
    """YaRN's longest texts, asked about in `SHARE` of their memory."""
    from ggext.runtime.engine import MemoryOptions, SessionOptions

    length = LENGTHS[-1]
    watcher.step(f"yarn at {length:,} tokens, compressed")
    options = SessionOptions(memory=MemoryOptions("compress", keep=SHARE))
    answers = list(_ask(bake(folder, "yarn", length), samples, watcher, options))
    return Recall("yarn", length, _right(answers, samples))


def _right(
    answers: Sequence[str], samples: Sequence[language.RecallSample]
) -> Estimate:
    """The share of answers that are right to the letter."""
    pairs = zip(answers, samples, strict=True)
    scores = [float(answer == sample.answer) for answer, sample in pairs]
    return share(scores, [index // _QUESTIONS_A_TEXT for index in range(len(answers))])


def spot_check(folder: Path) -> Example:
    """One question to the embedded model, baked with YaRN for twice its length and verified."""
    sample = next(_samples(0, 2 * TRAINED, 1))
    (answer,) = _ask(bake(folder, "yarn", 2 * TRAINED), [sample], Watcher())
    return Example(sample.question, sample.answer, {"yarn": answer})


def sample_text(tokens: int, seed: int = 0) -> str:
    """A text of exactly ``tokens`` in the model's little English, to ask it about.

    Raises ``UsageError`` for fewer tokens than the facts in it take.
    """
    rng = random.Random(f"text {seed}")
    try:
        return language.document(
            rng, language.facts(rng, language.RECALL_FACTS), tokens
        )
    except ValueError:
        least = language.FACT_TOKENS * language.RECALL_FACTS
        raise UsageError(
            f"text={tokens} is too short: {language.RECALL_FACTS} facts take {least} tokens"
        ) from None


def _samples(seed: int, length: int, questions: int) -> Iterator[language.RecallSample]:
    """Five for each text: the session evaluates the text once and then only what differs."""
    rng = random.Random(f"recall {seed} {length}")
    for first in range(0, questions, _QUESTIONS_A_TEXT):
        known_facts = language.facts(rng, language.RECALL_FACTS)
        text = language.document(rng, known_facts, length - language.CHAT_TOKENS)
        for fact in rng.sample(known_facts, _QUESTIONS_A_TEXT)[: questions - first]:
            yield language.RecallSample(
                text, language.question(fact.key), language.answer(fact.key, fact.place)
            )


def _ask(
    path: Path,
    samples: list[language.RecallSample],
    watcher: Watcher,
    options: SessionOptions | None = None,
) -> Iterator[str]:
    """The greedy answers, by the same way that ``ggext chat`` takes."""
    from ggext.chat.conversation import ChatOptions, Conversation
    from ggext.runtime.engine import Model, Sampling, Session

    with Model.open(path) as model, Session(model, options) as session:
        conversation = Conversation(
            model,
            session,
            Sampling(temperature=0.0),
            ChatOptions(max_tokens=_LONGEST_ANSWER),
        )
        for index, sample in enumerate(samples):
            conversation.clear()
            yield "".join(conversation.ask(language.opening(sample))).strip()
            if index % _QUESTIONS_A_TEXT == 0:  # the text was read for this one
                watcher.advance(model.n_ctx_train)


def _example(
    samples: list[language.RecallSample], answers: dict[Method, list[str]]
) -> Example:
    """The first question that tells the two files apart, or simply the first."""
    right = [sample.answer for sample in samples]
    apart = (
        i
        for i, answer in enumerate(right)
        if answers["yarn"][i] == answer != answers["none"][i]
    )
    index = next(apart, 0)
    chosen: dict[Method, str] = {
        method: answers[method][index] for method in ("none", "yarn")
    }
    return Example(samples[index].question, right[index], chosen)


def measure_perplexity(
    path: Path, length: int, seed: int, watcher: Watcher | None = None
) -> tuple[float, ...]:
    """exp of the mean negative log-likelihood of the next token, by position in steps of
    ``TRAINED``."""
    import numpy as np

    from ggext.quality.perplexity import nll
    from ggext.runtime.engine import Model, Session

    rng = random.Random(f"perplexity {seed}")
    losses = np.zeros((_PERPLEXITY_TEXTS, length - 1))
    with Model.open(path) as model, Session(model) as session:
        for row in losses:
            text = language.document(
                rng, language.facts(rng, language.RECALL_FACTS), length - 2
            )
            prompt = f"{language.BOS}{language.USER}{text}"
            tokens = model.tokenize(prompt, add_special=False, parse_special=True)
            if len(tokens) != length:
                raise ModelError(
                    f"{path} makes {len(tokens)} tokens of a text of {length}"
                )
            row[:] = nll(session, tokens)
            if watcher is not None:
                watcher.advance(length)
    steps = range(0, length, TRAINED)
    return tuple(math.exp(losses[:, start : start + TRAINED].mean()) for start in steps)
