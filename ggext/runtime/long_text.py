"""Tokenizes a text of any length in bounded stack, whatever the vocabulary's expressions.

llama.cpp splits many BPE vocabularies' text with std::regex, which recurses for every character of
a match: 30,000 overflow the stack. So it gets windows of a bounded length. A window's tokens are
taken up to a place from which tokenizing starts again with the same tokens as the window has there.
The expressions look only ahead, so what comes after such a place does not depend on what was before
it, and the tokens are those of the unbroken text. Only in a match that is longer than a window, and
has no such place, the text is cut anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

#: Characters that are taken of a window at most, and those after them, which show that a place is
#: one. With both a stack of 1 MiB is enough for all expressions.
TAKEN, AHEAD = 1024, 256
_TRIED = 12  # places of a window before it is cut anywhere

_DIGITS = TAKEN  # a window goes on to the end of a number, of so many digits at most

Tokenize = Callable[[str], list[int]]


def tokens_of(text: str, tokenize: Tokenize) -> list[int]:
    """The tokens of ``text``. ``tokenize`` gets TAKEN + AHEAD characters, or a number more."""
    tokens: list[int] = []
    at = 0
    while len(text) - at > TAKEN + AHEAD:
        window = text[at : _end(text, at + TAKEN + AHEAD)]
        taken, length = _taken(window, tokenize)
        tokens += taken
        at += length
    return tokens + tokenize(text[at:])


def _end(text: str, end: int) -> int:
    """After the number at ``end``: some vocabularies group digits from the right."""
    most = min(len(text), end + _DIGITS)
    while end < most and text[end - 1].isdigit() and text[end].isdigit():
        end += 1
    return end


def _taken(window: str, tokenize: Tokenize) -> tuple[list[int], int]:
    """The tokens that are taken of a window, and how many characters they are."""
    whole = tokenize(window)
    for place in _places(window):
        rest = tokenize(window[place:])
        if rest and whole[len(whole) - len(rest) :] == rest:
            return whole[: len(whole) - len(rest)], place
    return _cut_anywhere(window, tokenize)


def _cut_anywhere(window: str, tokenize: Tokenize) -> tuple[list[int], int]:
    return tokenize(window[:TAKEN]), TAKEN


def _places(window: str) -> Iterator[int]:
    """Where a window may be taken up to, likely ones first: the last beginnings of a word, then the
    last places at all, which the period of a pattern is shorter than."""
    words = (
        i
        for i in range(TAKEN, TAKEN // 2, -1)
        if window[i] == " " and window[i - 1].isalnum() and window[i + 1].isalnum()
    )
    for _, place in zip(range(4), words, strict=False):
        yield place
    yield from range(TAKEN, TAKEN - _TRIED, -1)
