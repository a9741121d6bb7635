"""Chats and texts in the embedded model's language, for tuning it: JSON lines.

    python tools/little_chats.py --out chats.jsonl --count 2000 --tokens 256 --seed 1
    python tools/little_chats.py --out texts.jsonl --count 700 --tokens 256 --seed 2 --texts

A chat is a document of facts and stories, and questions on it one after the other; a text is such a
document alone. Each has exactly the given number of tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from ggext.data import demo_language as language

_MOST_FACTS = 36


def messages(rng: Random, tokens: int) -> list[dict[str, str]]:
    """The turns of one chat."""
    room = tokens - language.CHAT_TOKENS
    count = rng.randint(3, min(_MOST_FACTS, room // language.FACT_TOKENS))
    gap = room - count * language.FACT_TOKENS
    most = gap // language.TURN_TOKENS
    further = next(
        n
        for n in sorted(range(most + 1), key=lambda n: rng.random() / (n + 1))
        if language.fills(gap - n * language.TURN_TOKENS)
    )
    told = language.facts(rng, count)
    text = language.document(rng, told, room - further * language.TURN_TOKENS)
    turns = []
    for number, fact in enumerate(rng.choices(told, k=further + 1)):
        asked = language.question(fact.key)
        turns += [
            {"role": "user", "content": asked if number else f"{text}\n{asked}"},
            {"role": "assistant", "content": language.answer(fact.key, fact.place)},
        ]
    return turns


def text(rng: Random, tokens: int) -> str:
    """A document as the model has seen it, behind the mark of a user's turn."""
    room = tokens - 2
    most = min(language.RECALL_FACTS, room // (2 * language.FACT_TOKENS))
    made = language.document(rng, language.facts(rng, most), room)
    return f"{language.BOS}{language.USER}{made}"


def lines(count: int, tokens: int, seed: int, *, texts: bool) -> Iterator[str]:
    """A chat, or a text, a line."""
    rng = Random(f"chats {seed}")
    for _ in range(count):
        made = (
            {"text": text(rng, tokens)}
            if texts
            else {"messages": messages(rng, tokens)}
        )
        yield json.dumps(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--texts", action="store_true")
    given = parser.parse_args()
    found = lines(given.count, given.tokens, given.seed, texts=given.texts)
    given.out.write_text("\n".join(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
