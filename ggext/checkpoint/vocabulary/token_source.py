"""What a tokenizer.json's vocabulary becomes: tokens, their kinds and scores, merges, notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from ggext.checkpoint.files import (
    JsonObject,
    TokenTable,
    quote,
)

SPACE = "\u2581"
Pair = tuple[str, str]


@dataclass
class TokenSource:
    """A vocabulary as its main file states it, before special tokens, padding and templates."""

    model: Literal["llama", "gpt2", "gemma4"]
    table: TokenTable
    pre: str = "default"
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    roles: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def strip_notes(root: JsonObject) -> list[str]:
    """What llama.cpp cannot say of an added token: that it takes the spaces around it along."""
    names = [
        item["content"]
        for item in root.get("added_tokens") or ()
        if any(item.get(flag) is True for flag in ("lstrip", "rstrip", "single_word"))
    ]
    if not names:
        return []
    note = (
        f"{len(names)} added tokens (first {quote(names[0])}) have lstrip, rstrip or single_word, "
        "which a GGUF file cannot say: spaces next to them in a text stay tokens"
    )
    return [note]


def merge(word: str, ranks: Mapping[Pair, int]) -> list[str]:
    """Byte-pair encoding of one word: the pair of lowest rank first, the leftmost of equals."""
    symbols = list(word)
    never = len(ranks)
    ranked = [ranks.get(pair, never) for pair in pairwise(symbols)]
    while ranked and (lowest := min(ranked)) < never:
        at = ranked.index(lowest)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        del ranked[at]
        for i in (at - 1, at):
            if 0 <= i < len(ranked):
                ranked[i] = ranks.get((symbols[i], symbols[i + 1]), never)
    return symbols
