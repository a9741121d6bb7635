"""Chats that look facts up in a passage of your text, for tuning a model of English: JSON lines.

    python tools/lookup_chats.py stories.txt --out chats.jsonl --count 400 --words 270 --seed 1

Numbers of people are put between the sentences of a passage; each is asked for, one after the
other. They are other facts than those that `ggext eval` asks for.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

_FACTS = 4
_NUMBERS = (
    "telephone number",
    "locker number",
    "account number",
    "ticket number",
    "membership number",
    "licence number",
)
_FIRST = (
    "Anna Bruno Clara David Elena Frank Greta Henry Irene Jonas Karin Louis".split()
)
_LAST = (
    "Abbott Barnes Carver Dalton Ellis Fisher Graham Hobbs Irving Jarvis Knox".split()
)


def fact(rng: Random) -> tuple[str, str]:
    """What has a number, and the sentence that says so."""
    thing = f"{rng.choice(_NUMBERS)} of {rng.choice(_FIRST)} {rng.choice(_LAST)}"
    return thing, f"The {thing} is {rng.randrange(10**5, 10**7)}."


def messages(sentences: list[str], words: int, rng: Random) -> list[dict[str, str]]:
    """The turns of one chat; its passage has so many words or a sentence more."""
    start = rng.randrange(len(sentences))
    passage: list[str] = []
    while sum(len(sentence.split()) for sentence in passage) < words:
        passage.append(sentences[(start + len(passage)) % len(sentences)])
    facts = dict(fact(rng) for _ in range(_FACTS))
    for told in facts.values():
        passage.insert(rng.randint(0, len(passage)), told)
    turns = []
    for number, thing in enumerate(rng.sample(sorted(facts), len(facts))):
        asked = f"What is the {thing}?"
        content = asked if number else f"{' '.join(passage)}\n\n{asked}"
        turns += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": facts[thing]},
        ]
    return turns


def lines(text: str, count: int, words: int, seed: int) -> Iterator[str]:
    """A chat a line."""
    found = re.findall(r"[^.!?]+[.!?]+[\"'”]?", " ".join(text.split()))
    sentences = [sentence.strip() for sentence in found]
    rng = Random(f"lookup {seed}")
    for _ in range(count):
        yield json.dumps({"messages": messages(sentences, words, rng)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--words", type=int, default=270)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = lines(given.text.read_text("utf-8"), given.count, given.words, given.seed)
    given.out.write_text("\n".join(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
