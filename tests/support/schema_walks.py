"""Random texts that a grammar lets through, and the keywords of JSON schemas with what is valid."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from ggext.runtime import constraint
from ggext.runtime.constraint import Grammar, JsonGrammar

END = 256
# How likely a byte is against another that is allowed: a random walk must find an end.
_CLOSING = b'"}]'
_SPACES = b" \n\t\r"


def matcher(grammar: Grammar) -> Any:
    """llguidance over single bytes, as `is_complete` has it."""
    if isinstance(grammar, JsonGrammar):
        source = constraint._json_source(grammar.schema)
    else:
        source = constraint._lark_source(constraint.gbnf.to_lark(grammar).source)
    return constraint._matcher(constraint._bytes_tokenizer(), source)


def walk(grammar: Grammar, seed: int, longest: int = 2_000) -> bytes:
    """A text that follows the grammar, byte for byte by chance."""
    chance, following = random.Random(seed), matcher(grammar)
    text = bytearray()
    while len(text) < longest:
        mask = np.frombuffer(following.compute_bitmask(), np.uint8)
        assert not following.is_error(), following.get_error()
        allowed = np.flatnonzero(
            np.unpackbits(mask, bitorder="little")[: END + 1]
        ).tolist()
        assert allowed, bytes(text)
        if allowed == [END] or (END in allowed and chance.random() < 0.3):
            return bytes(text)
        choices = [byte for byte in allowed if byte != END]
        weights = [_weight(byte, len(text)) for byte in choices]
        byte = chance.choices(choices, weights)[0]
        assert following.consume_token(byte)
        text.append(byte)
    raise AssertionError(f"no end after {longest} bytes: {bytes(text[:80])!r}")


def _weight(byte: int, length: int) -> float:
    if byte in _CLOSING:
        return 2 if length < 60 else 9
    if byte in _SPACES:
        return 0.05
    return 1 if 32 < byte < 127 else 0.3


def follows(grammar: Grammar, text: str) -> bool:
    """Whether the whole text follows the grammar."""
    return constraint.is_complete(grammar, text)
