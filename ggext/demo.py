"""What context extension does, measured on the embedded model through llama.cpp.

The model was trained on 256 tokens. For each method and length a file is baked, verified and asked
for facts in texts that fill the length; perplexity by position stands beside it. Every figure is
measured in the run that prints it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.convert.run import silent
from ggext.data import demo_language as language
from ggext.errors import ModelError, UsageError
from ggext.rope.scaling import Method, RopeScaling
from ggext.verify import verify

TRAINED = 256
LENGTHS = (256, 512, 1024, 2048)
METHODS: tuple[Method, ...] = ("none", "linear", "ntk", "yarn")
QUESTIONS = 5
_LONGEST_ANSWER = 12
_PERPLEXITY_TEXTS = 12

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recall:
    """``correct`` of ``asked`` answers were right to the letter at ``length`` tokens."""

    method: Method
    length: int
    correct: int
    asked: int

    @property
    def share(self) -> float:
        return self.correct / self.asked


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
    answers: dict[Method, str]


@dataclass(frozen=True)
class DemoResult:
    recalls: list[Recall]
    perplexities: list[Perplexity]
    example: Example
    files: int

    def recall(self, method: Method, length: int) -> float:
        return next(r.share for r in self.recalls if (r.method, r.length) == (method, length))


def bake(folder: Path, method: Method, length: int) -> Path:
    """The embedded model for ``length`` tokens, held to its recipe before it is used."""
    factor = length / TRAINED
    path = folder / f"demo-{method}-{length}.gguf"
    if factor == 1 or method == "none":
        rope = RopeScaling("none", context=length)  # the file admits the length and scales nothing
    else:
        rope = RopeScaling(method, factor=factor)
    convert(ConvertOptions(DEMO_MODEL, path, rope, force=True))
    report = verify(path)
    if not report.passed:
        raise ModelError(f"{path} does not do what was asked: {report.checks}")
    return path


def run(folder: Path, texts: int = 40, seed: int = 0, progress: Progress = silent) -> DemoResult:
    """Bake, verify and measure. ``texts``: read for each figure, ``QUESTIONS`` each. Needs the
    extra ``run``."""
    recalls: list[Recall] = []
    perplexities: list[Perplexity] = []
    answers: dict[Method, list[str]] = {}
    samples = {length: list(_samples(seed, length, texts)) for length in LENGTHS}
    for method in METHODS:
        for length in LENGTHS:
            if length == TRAINED and method != "none":
                recalls.append(
                    Recall(method, length, recalls[0].correct, recalls[0].asked)
                )  # the same file
                continue
            progress(f"{method} at {length} tokens: {len(samples[length])} questions")
            said = list(_ask(bake(folder, method, length), samples[length]))
            right = [
                answer == sample.answer
                for answer, sample in zip(said, samples[length], strict=True)
            ]
            recalls.append(Recall(method, length, sum(right), len(right)))
            if length == 4 * TRAINED:
                answers[method] = said
    for method in ("none", "yarn"):
        progress(f"{method}: perplexity by position")
        path = bake(folder, method, LENGTHS[-1])
        perplexities.append(Perplexity(method, measure_perplexity(path, LENGTHS[-1], seed)))
    example = _example(samples[4 * TRAINED], answers)
    return DemoResult(recalls, perplexities, example, len(list(folder.glob("demo-*.gguf"))))


def spot_check(folder: Path) -> Example:
    """One question to the embedded model, baked with YaRN for twice its length and verified."""
    sample = next(_samples(0, 2 * TRAINED, 1))
    (said,) = _ask(bake(folder, "yarn", 2 * TRAINED), [sample])
    return Example(sample.question, sample.answer, {"yarn": said})


def sample_text(tokens: int, seed: int = 0) -> str:
    """A text of exactly ``tokens`` in the model's little English, to ask it about.

    Raises ``UsageError`` for fewer tokens than the facts in it take.
    """
    rng = random.Random(f"text {seed}")
    try:
        return language.document(rng, language.facts(rng, language.RECALL_FACTS), tokens)
    except ValueError:
        least = language.FACT_TOKENS * language.RECALL_FACTS
        raise UsageError(
            f"--text {tokens} is too short: {language.RECALL_FACTS} facts take {least} tokens"
        ) from None


def _samples(seed: int, length: int, texts: int) -> Iterator[language.RecallSample]:
    """``QUESTIONS`` for each text: the session evaluates the text once and then only what
    differs."""
    rng = random.Random(f"recall {seed} {length}")
    for _ in range(texts):
        told = language.facts(rng, language.RECALL_FACTS)
        text = language.document(rng, told, length - language.CHAT_TOKENS)
        for fact in rng.sample(told, QUESTIONS):
            yield language.RecallSample(
                text, language.question(fact.key), language.answer(fact.key, fact.place)
            )


def _ask(path: Path, samples: list[language.RecallSample]) -> Iterator[str]:
    """The greedy answers, by the same way that ``ggext chat`` takes."""
    from ggext.chat.conversation import ChatOptions, Conversation
    from ggext.runtime.engine import Model, Sampling, Session

    with Model.open(path) as model, Session(model) as session:
        conversation = Conversation(
            model, session, Sampling(temperature=0.0), ChatOptions(max_tokens=_LONGEST_ANSWER)
        )
        for sample in samples:
            conversation.clear()
            yield "".join(conversation.ask(language.opening(sample))).strip()


def _example(samples: list[language.RecallSample], answers: dict[Method, list[str]]) -> Example:
    """The first question that tells the two files apart, or simply the first."""
    right = [sample.answer for sample in samples]
    apart = (
        i for i, answer in enumerate(right) if answers["yarn"][i] == answer != answers["none"][i]
    )
    index = next(apart, 0)
    said: dict[Method, str] = {method: answers[method][index] for method in ("none", "yarn")}
    return Example(samples[index].question, right[index], said)


def measure_perplexity(path: Path, length: int, seed: int) -> tuple[float, ...]:
    """exp of the mean negative log-likelihood of the next token, by position in steps of
    ``TRAINED``."""
    import numpy as np

    from ggext.quality.perplexity import nll
    from ggext.runtime.engine import Model, Session

    rng = random.Random(f"perplexity {seed}")
    losses = np.zeros((_PERPLEXITY_TEXTS, length - 1))
    with Model.open(path) as model, Session(model) as session:
        for row in losses:
            text = language.document(rng, language.facts(rng, language.RECALL_FACTS), length - 2)
            prompt = f"{language.BOS}{language.USER}{text}"
            tokens = model.tokenize(prompt, add_special=False, parse_special=True)
            if len(tokens) != length:
                raise ModelError(f"{path} makes {len(tokens)} tokens of a text of {length}")
            row[:] = nll(session, tokens)
    steps = range(0, length, TRAINED)
    return tuple(math.exp(losses[:, start : start + TRAINED].mean()) for start in steps)
