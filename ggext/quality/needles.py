"""Asks a session the questions of a sample: one reading of the text serves all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

from ggext.chat.prompt import Detokenizer
from ggext.data import demo_language as language
from ggext.errors import UsageError
from ggext.quality import tasks, words
from ggext.quality.prompts import PromptMaker
from ggext.quality.samples import Question, Sample
from ggext.quality.scoring import match_all, match_any
from ggext.runtime.likelihood import scores
from ggext.runtime.sampling import Sampling

if TYPE_CHECKING:
    from ggext.runtime.engine import Session
    from ggext.runtime.model import Model

Progress = Callable[[int, int], None]

_CHARACTERS = "The secret code of the amber falcon is 4920817."


@dataclass(frozen=True)
class Outcome:
    """What became of one question."""

    # From 0 to 1.
    score: float
    # Of the needle in the text, from 0 to 1; None: in many places.
    depth: float | None
    # Tokens of the prompt and the answer, or the room for it.
    tokens: int
    # The answer hit its budget and was not right by then.
    cut: bool = False
    # There was no answer.
    empty: bool = False


def ask(
    session: Session,
    prompts: PromptMaker,
    sample: Sample,
    progress: Progress | None = None,
) -> list[Outcome]:
    """The outcome of each question of a sample. The session evaluates the text once, and for each
    further question only what differs. Raises ContextFullError, ModelError."""
    return [
        _one(session, prompts, sample.body, question, progress)
        for question in sample.questions
    ]


def _one(
    session: Session,
    prompts: PromptMaker,
    body: str,
    question: Question,
    progress: Progress | None,
) -> Outcome:
    prompt = prompts.prompt(body, question)
    length = len(prompt) + prompts.room(question)
    if question.budget is None:
        return Outcome(
            float(forced(session, prompt, prompts.answer(question), progress)),
            question.depth,
            length,
        )
    session.evaluate(prompt, progress)
    answer = Detokenizer(session.model)
    generation = session.generate(Sampling(temperature=0.0), question.budget)
    text = "".join(map(answer.push, generation)) + answer.rest()
    score = (match_any if question.any_of else match_all)(text, question.answers)
    return Outcome(
        score,
        question.depth,
        length,
        cut=generation.finish == "length" and score < 1,
        empty=not text.strip(),
    )


def forced(
    session: Session,
    prompt: list[int],
    answer: list[int],
    progress: Progress | None = None,
) -> bool:
    """Whether greedy decoding would give exactly these tokens after the prompt.

    That is so when each is the likeliest after those before it, which one evaluation shows.
    """
    parts = scores(session, [*prompt, *answer], len(prompt), progress)
    return all(bool(part.greedy.all()) for part in parts)


def answer_loss(
    session: Session,
    prompts: PromptMaker,
    sample: Sample,
    progress: Progress | None = None,
) -> float:
    """The mean of -log p over the tokens of a sample's one answers, natural logarithm: finer than
    whether they are right. Raises as `ask`."""
    losses: list[float] = []
    for question in sample.questions:
        prompt = prompts.prompt(sample.body, question)
        answer = prompts.answer(question)
        for part in scores(session, [*prompt, *answer], len(prompt), progress):
            losses += part.nll.tolist()
    return math.fsum(losses) / len(losses)


def sample_maker(
    prompts: PromptMaker,
    filler: tasks.Filler = words.sentences,
    own_questions: tuple[tasks.UserQuestion, ...] = (),
    needles: int = tasks.DEPTHS,
) -> Callable[[str, int, Random], Sample]:
    """The maker of samples (task, length, random numbers) for what a vocabulary can spell.
    `needles`: those of a multikey text, each of them asked for.

    Plain English with numbers; for the embedded model, whose words are those of its own small
    language, texts in that. Raises UsageError where the vocabulary can spell neither.
    """
    count = lru_cache(maxsize=4)(prompts.count)
    if speaks_little(prompts.model):
        return lambda task, length, rng: _little(prompts, task, length, rng, needles)
    if prompts.spells(_CHARACTERS):
        source = tasks.Source(count, filler, own_questions, needles)
        return lambda task, length, rng: tasks.make(task, source, length, rng)
    raise UsageError(
        f"the vocabulary of {prompts.model.path} cannot spell a needle such as "
        f"{_CHARACTERS!r}: measure perplexity alone, without tasks"
    )


def speaks_little(model: Model) -> bool:
    """Whether this is the embedded model's vocabulary: each word of its language is one token.

    It can spell all else byte by byte, which the model has never seen.
    """
    if model.n_vocab > 1 << 12:
        return False
    spelled = (
        model.tokenize(word, add_special=False) for word in language.vocabulary()
    )
    return all(len(tokens) == 1 for tokens in spelled)


def _little(
    prompts: PromptMaker, task: str, length: int, rng: Random, needles: int
) -> Sample:
    """A sample in the embedded model's language: facts, and questions on those nearest to even
    depths."""
    if task not in ("multikey", "single"):
        raise UsageError(
            f"the task {task} needs words that the vocabulary of {prompts.model.path} has not; "
            "it can spell multikey and single"
        )
    questions = needles if task == "multikey" else 1
    room = length - language.CHAT_TOKENS
    facts = min(language.RECALL_FACTS, room // (2 * language.FACT_TOKENS))
    if facts < questions:
        raise UsageError(
            f"a length of {length} tokens is too short for {questions} needles"
        )
    known = language.facts(rng, facts)
    # The chat's end marker is counted by the language, and not asked for here.
    text = language.document(rng, known, room + 1)
    places = {fact: text.find(fact.sentence()) / len(text) for fact in known}
    chosen = []
    for i in range(questions):
        depth = (i + rng.random()) / questions
        chosen.append(
            min(
                (f for f in known if f not in chosen),
                key=lambda f: abs(places[f] - depth),
            )
        )
    return Sample(
        task,
        text,
        tuple(
            Question(
                language.question(fact.key),
                "",
                (language.answer(fact.key, fact.place),),
                places[fact],
            )
            for fact in chosen
        ),
    )
