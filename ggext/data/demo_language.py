"""The closed little English that the demo model speaks.

A text says who keeps what where ("Lily keeps the lamp upstairs."), with short story sentences in
between; a question asks for one of those things ("Where is the lamp?"). The training tool and
`ggext demo` both take their texts from here, so the demo asks for nothing the model never saw.

Two properties carry the design. Every word and every mark is one token of the demo tokenizer, so
`count_tokens` plans a text to an exact length without a tokenizer. And a value stands directly
after its key, in the fact and in the answer, so one previous-token head serves both: a model of
less than a million parameters learns to look things up, not only to guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

BOS = "<|bos|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
SPECIAL_TOKENS = (BOS, SYSTEM, USER, ASSISTANT, END)

NAMES = tuple(
    "Lily Tom Anna Ben Clara Dan Emma Finn Grace Hugo Ida Jack "
    "Kate Leo Mia Nora Oscar Paul Rosa Sam Tess Uma Vera Will".split()
)
OBJECTS = tuple(
    "lamp kettle drum violin ladder basket mirror clock hammer anchor bottle candle "
    "carpet compass crown diary doll flute guitar hat helmet jar kite letter "
    "map medal needle oar pencil piano pillow pot puzzle ring rope ruler "
    "saddle scarf shovel spoon teapot tent ticket trumpet vase wagon whistle wheel".split()
)
PLACES = tuple(
    "upstairs downstairs outside inside alongside upstage backstage offstage "
    "underground underwater overhead overseas nearby ashore aboard abroad "
    "aloft below above uptown downtown uphill downhill upstream "
    "downstream northward southward eastward westward offshore inland midway".split()
)
KEEPING = tuple("keeps left put hides stores".split())
ANIMALS = tuple("dog cat bird fox horse mouse rabbit goat cow duck frog bear".split())
QUALITIES = tuple("small old brown happy quiet clever hungry young".split())
DOINGS = tuple(
    "sleeps sings runs waits laughs jumps walks dreams dances smiles".split()
)
MANNERS = tuple("softly slowly again today quickly now alone often".split())
MEETINGS = tuple("sees follows feeds calls likes meets hears helps".split())

# Each story form by its length in tokens, the full stop included. A slot in braces is filled from
# the list below. No form names an object or a place, so a fact stays the only word on its key.
_STORY_FORMS: dict[int, tuple[str, ...]] = {
    3: ("{name} {doing}.",),
    4: ("{name} {doing} {manner}.", "The {animal} {doing}."),
    5: ("{name} {meeting} the {animal}.", "The {animal} {doing} {manner}."),
    6: (
        "The {animal} {meeting} the {animal}.",
        "{name} {meeting} the {quality} {animal}.",
    ),
    7: (
        "The {quality} {animal} {meeting} the {animal}.",
        "{name} {doing} and the {animal} {doing}.",
    ),
    8: ("The {animal} {doing} {manner} and {name} {doing}.",),
    9: ("The {quality} {animal} {doing} and {name} {doing} {manner}.",),
}
_SLOTS: dict[str, Sequence[str]] = {
    "name": NAMES,
    "doing": DOINGS,
    "manner": MANNERS,
    "animal": ANIMALS,
    "meeting": MEETINGS,
    "quality": QUALITIES,
}
_SHORTEST = min(_STORY_FORMS)
_SLOT = re.compile(r"\{(\w+)\}")
_TOKEN = re.compile(r"<\|\w+\|>|\w+|[^\w\s]|\n")

FACT_TOKENS = 6
QUESTION_TOKENS = 5
ANSWER_TOKENS = 6
# <|bos|><|user|>document\nquestion<|end|><|assistant|>answer<|end|>
TURN_TOKENS = 4 + QUESTION_TOKENS + ANSWER_TOKENS
CHAT_TOKENS = 2 + TURN_TOKENS
# The evaluation keeps the number of facts at every length, so only the distance grows.
RECALL_FACTS = 24


class Fact(NamedTuple):
    """Who keeps which object at which place; an object has one fact in a text at most."""

    name: str
    verb: str
    key: str
    place: str

    def sentence(self) -> str:
        """The fact as the text tells it, FACT_TOKENS long."""
        return f"{self.name} {self.verb} the {self.key} {self.place}."


class RecallSample(NamedTuple):
    """A document, a question about one fact in it, and the only right answer."""

    document: str
    question: str
    answer: str


def vocabulary() -> tuple[str, ...]:
    """Every spelling that is one token: words after a space, and sentence starters without."""
    starters = (*NAMES, "The", "Where", "Look")
    inner = (
        "the",
        "and",
        "is",
        "for",
        *OBJECTS,
        *PLACES,
        *KEEPING,
        *ANIMALS,
        *QUALITIES,
    )
    spaced = (*starters, *inner, *DOINGS, *MANNERS, *MEETINGS)
    return (*starters, *(f" {word}" for word in spaced))


def count_tokens(text: str) -> int:
    """Tokens of a text of this language: words, marks, line breaks and turn markers."""
    return len(_TOKEN.findall(text))


def question(key: str) -> str:
    """The question for an object, QUESTION_TOKENS long."""
    return f"Where is the {key}?"


def answer(key: str, place: str) -> str:
    """The answer, ANSWER_TOKENS long: the key again, then at once the value."""
    return f"Look for the {key} {place}."


def story_sentence(rng: Random, length: int) -> str:
    """One story sentence of exactly `length` tokens (3 to 9)."""
    form = rng.choice(_STORY_FORMS[length])
    return _SLOT.sub(lambda slot: rng.choice(_SLOTS[slot[1]]), form)


def story(rng: Random, n_sentences: int) -> str:
    """A text of `n_sentences` story sentences, without any fact."""
    lengths = tuple(_STORY_FORMS)
    return " ".join(
        story_sentence(rng, rng.choice(lengths)) for _ in range(n_sentences)
    )


def facts(
    rng: Random,
    count: int,
    keys: Sequence[str] = OBJECTS,
    places: Sequence[str] = PLACES,
) -> list[Fact]:
    """`count` facts about different objects; `count` is at most len(keys)."""
    return [
        Fact(rng.choice(NAMES), rng.choice(KEEPING), key, rng.choice(places))
        for key in rng.sample(keys, count)
    ]


def fills(gap: int) -> bool:
    """Whether story sentences can fill exactly `gap` tokens."""
    return gap == 0 or gap >= _SHORTEST


def document(rng: Random, known_facts: Sequence[Fact], length: int) -> str:
    """A text of exactly `length` tokens that tells the facts in random order and place.

    ValueError when the facts alone are longer, or leave a gap that no sentence fills.
    """
    gap = length - FACT_TOKENS * len(known_facts)
    if not fills(gap):
        raise ValueError(
            f"no text of {length} tokens tells {len(known_facts)} facts; use fewer facts"
        )
    sentences = [fact.sentence() for fact in known_facts]
    while gap:
        size = rng.choice([size for size in _STORY_FORMS if fills(gap - size)])
        sentences.append(story_sentence(rng, size))
        gap -= size
    rng.shuffle(sentences)
    return " ".join(sentences)


def recall_sample(
    rng: Random, length: int, n_facts: int = RECALL_FACTS
) -> RecallSample:
    """A document and a question that fill a chat of exactly `length` tokens.

    Counted are the turn markers, the line break between document and question, and the answer
    with its end marker. The fact asked for stands anywhere in the document.
    """
    known_facts = facts(rng, n_facts)
    chosen = rng.choice(known_facts)
    text = document(rng, known_facts, length - CHAT_TOKENS)
    return RecallSample(text, question(chosen.key), answer(chosen.key, chosen.place))


def opening(sample: RecallSample) -> str:
    """The first user turn of a sample: the document, a line break, the question."""
    return f"{sample.document}\n{sample.question}"


def bare_pairs(rng: Random, known_facts: Sequence[Fact], length: int) -> str:
    """Keys and values in turn, `length` tokens: each fact once and then again and again."""
    again = rng.choices(known_facts, k=length // 2 - len(known_facts))
    return "".join(f" {fact.key} {fact.place}" for fact in (*known_facts, *again))


# How a document and the first question meet, with the tokens beyond CHAT_TOKENS.
_OPENINGS = (
    (USER, "\n", 0),
    (USER, "\n", 0),
    (USER, "\n\n", 1),
    (USER, " ", -1),
    (SYSTEM, END + USER, 1),
)


def training_chat(rng: Random, length: int, n_facts: tuple[int, int]) -> str:
    """A chat of exactly `length` tokens: a document with facts, then question by question.

    `n_facts` bounds the number of facts. Most of the room goes to questions, because only answers
    carry the signal that makes the lookup appear.
    """
    first, joint, extra = rng.choice(_OPENINGS)
    room = length - CHAT_TOKENS - extra
    fewest, most = n_facts
    count = rng.randint(fewest, min(most, room // FACT_TOKENS))
    gap = room - count * FACT_TOKENS
    fits = [n for n in range(gap // TURN_TOKENS + 1) if fills(gap - n * TURN_TOKENS)]
    if not fits:
        return training_chat(rng, length, n_facts)
    further = max(rng.choices(fits, k=2))
    known_facts = facts(rng, count)
    parts = [
        BOS,
        first,
        document(rng, known_facts, room - further * TURN_TOKENS),
        joint,
    ]
    # With replacement: otherwise "a value not given yet" is a shortcut that a model learns instead.
    for fact in rng.choices(known_facts, k=further + 1):
        parts += [
            question(fact.key),
            END,
            ASSISTANT,
            answer(fact.key, fact.place),
            END,
            USER,
        ]
    return "".join(parts[:-1])
