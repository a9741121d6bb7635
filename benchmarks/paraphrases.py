"""Questions that do not use the words of the fact they ask for: the whole cache, and landmark at a
quarter of it.

Five facts stand in each text, all with a number, so that a question must find its own. An answer is
right where the number is in the first 24 tokens of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from ggext.quality import tasks
from ggext.quality.needles import ask
from ggext.quality.prompts import PromptMaker
from ggext.quality.samples import Question, Sample, filled
from ggext.quality.statistics import paired, share
from ggext.quality.texts import filler_of, read_text
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions

#: What the text says, the number, a question in its words and one in others.
FACTS = (
    (
        "The access number of the lighthouse is 4711.",
        "What is the access number of the lighthouse?",
        "Which digits open the tower by the sea?",
    ),
    (
        "The phone extension of the doctor is 8264.",
        "What is the phone extension of the doctor?",
        "Under which digits can one call the physician?",
    ),
    (
        "The locker combination of the violinist is 5093.",
        "What is the locker combination of the violinist?",
        "How does one unlock the musician's cupboard?",
    ),
    (
        "The train to Edinburgh carries the label 3785.",
        "Which label does the train to Edinburgh carry?",
        "What is written on the railway carriages bound for Scotland?",
    ),
    (
        "The safe of the butcher is set to 6158.",
        "What is the safe of the butcher set to?",
        "What opens the strongbox of the man who sells meat?",
    ),
    (
        "The horse named Thunder wears the tag 2946.",
        "Which tag does the horse named Thunder wear?",
        "What marks the animal that one rides on?",
    ),
    (
        "The registration of the yacht is 7302.",
        "What is the registration of the yacht?",
        "What is painted on the pleasure boat?",
    ),
    (
        "The key of the gardener bears the mark 3815.",
        "Which mark does the key of the gardener bear?",
        "What is stamped on the thing with which the man who tends flowers unlocks doors?",
    ),
    (
        "The password of the monastery is 9427.",
        "What is the password of the monastery?",
        "What must one say to enter where the monks live?",
    ),
    (
        "The invoice of the tailor came to 1684 pounds.",
        "What did the invoice of the tailor come to?",
        "How much money did the maker of suits demand?",
    ),
    (
        "The aeroplane carried the serial 5570.",
        "Which serial did the aeroplane carry?",
        "What was written on the flying machine?",
    ),
    (
        "The badge of the soldier shows 8039.",
        "What does the badge of the soldier show?",
        "What is engraved on the emblem of the man in the army?",
    ),
    (
        "The piano was built under the code 4263.",
        "Under which code was the piano built?",
        "What identifies the instrument that has black and white keys?",
    ),
    (
        "The telephone line of the bakery is 7718.",
        "What is the telephone line of the bakery?",
        "Where can one ring the shop that sells bread?",
    ),
    (
        "The cell of the forger was 2351.",
        "Which was the cell of the forger?",
        "In which room was the man imprisoned who made false banknotes?",
    ),
    (
        "The mountain rises to 6847 feet.",
        "To how many feet does the mountain rise?",
        "How high is the peak?",
    ),
    (
        "The wine cellar holds 3196 bottles.",
        "How many bottles does the wine cellar hold?",
        "What quantity of drink is stored below the house?",
    ),
    (
        "The library card of the student ends in 9054.",
        "What does the library card of the student end in?",
        "Which digits close the pass with which the young scholar borrows books?",
    ),
    (
        "The ambulance drives with the plate 1472.",
        "With which plate does the ambulance drive?",
        "What is written on the vehicle that brings the sick to hospital?",
    ),
    (
        "The elephant in the zoo weighs 5639 kilograms.",
        "How many kilograms does the elephant in the zoo weigh?",
        "How heavy is the grey animal with the trunk?",
    ),
    (
        "The ticket for the ferry was stamped 8826.",
        "What was stamped on the ticket for the ferry?",
        "What stood on the paper that was bought for the passage across the water?",
    ),
    (
        "The vault of the clockmaker opens at 4305.",
        "At what does the vault of the clockmaker open?",
        "How does one get into the strongroom of the man who repairs watches?",
    ),
    (
        "The mayor lives in house 2781.",
        "In which house does the mayor live?",
        "At which address does the head of the town reside?",
    ),
    (
        "The comet will return in the year 2956.",
        "In which year will the comet return?",
        "When is the heavenly body with a tail expected again?",
    ),
    (
        "The crown of the king has 1347 diamonds.",
        "How many diamonds has the crown of the king?",
        "How many precious stones decorate the royal headdress?",
    ),
)
#: Facts of a text.
EACH = tasks.DEPTHS
_NUMBER = re.compile("[0-9]{4}")
_OPENING = "The number is"


def paraphrases(path: Path, book: Path, length: int, texts: int) -> None:
    right: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    with Model.open(path, 0) as model:
        prompts = PromptMaker(model)
        for number in range(texts):
            sample = sample_of(prompts, book, length, number)
            for name, options in ways(length).items():
                with Session(model, options) as session:
                    outcomes = ask(session, prompts, sample)
                for i, outcome in enumerate(outcomes):
                    kind = "its own" if i < EACH else "others"
                    cell = right.setdefault((name, kind), {})
                    cell[number, i % EACH] = outcome.score
            print(table(length, right), flush=True)


def ways(length: int) -> dict[str, SessionOptions]:
    return {
        "whole": SessionOptions(n_ctx=length + 64, threads=1),
        "landmark, a quarter": SessionOptions(
            n_ctx=length // 4, threads=1, memory=MemoryOptions("landmark")
        ),
    }


def sample_of(prompts: PromptMaker, book: Path, length: int, number: int) -> Sample:
    """A part of a book with five of the facts in it; asked for in their own words, then in
    others."""
    rng = random.Random(2000 + number)
    sentences = filler_of([read_text(book)])
    start = rng.randrange(len(sentences) * 3 // 4)
    told = FACTS[EACH * number : EACH * (number + 1)]
    depths = [(i + rng.random()) / EACH for i in range(EACH)]
    questions = tuple(asked(told, 1)) + tuple(asked(told, 2))

    def build(size: int, padding: str) -> Sample:
        words = " ".join(sentences[start : start + size // 4 + 2]).split()[:size]
        for depth, fact in sorted(zip(depths, told, strict=True), reverse=True):
            at = int(depth * len(words))
            ends = (i + 1 for i in range(at, len(words)) if words[i].endswith("."))
            words.insert(next(ends, len(words)), fact[0])
        body = f"Read the following text.\n\n{' '.join(words)}{padding}"
        return Sample("paraphrases", body, questions)

    return filled(build, prompts.count, length, "paraphrases")


def asked(told: tuple[tuple[str, str, str], ...], kind: int) -> Iterator[Question]:
    for fact in told:
        number = _NUMBER.findall(fact[0])[0]
        yield Question(fact[kind], _OPENING, (number,), budget=24)


def table(
    length: int, right: dict[tuple[str, str], dict[tuple[int, int], float]]
) -> str:
    lines = [
        f"texts of {length:,} tokens",
        "",
        "| cache | the question's words | right | 95 % | landmark − whole, 95 % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (name, kind), answers in right.items():
        found = share([*answers.values()], [text for text, _ in answers])
        apart = None
        if name != "whole":
            apart = paired(
                right["whole", kind], answers, {key: key[0] for key in answers}
            )
        wide = "" if apart is None else f"{apart.low:+.2f} to {apart.high:+.2f}"
        lines.append(
            f"| {name} | {kind} | {sum(answers.values()):.0f} of {len(answers)} | "
            f"{100 * found.low:.0f} to {100 * found.high:.0f} % | {wide} |"
        )
    return "\n".join([*lines, ""])
