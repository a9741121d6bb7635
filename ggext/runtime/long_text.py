"""Tokenizes a text of any length in bounded stack, whatever the vocabulary's expressions.

llama.cpp splits many BPE vocabularies' text with std::regex, which recurses for every character of
a match: 30,000 overflow the stack. So it gets windows of a bounded length. A window's tokens are
taken up to a place from which tokenizing starts again with the same tokens as the window has there.
The expressions look only ahead, so what comes after such a place does not depend on what was before
it, and the tokens are those of the unbroken text. Only in a match that is longer than a window, and
has no such place, the text is cut anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

#: Characters that are taken of a window at most, and those after them, which show that a place is
#: one. With both a stack of 1 MiB is enough for all expressions.
TAKEN, AHEAD = 1024, 256
_TRIED = 12  # places of a window before it is cut anywhere
#: Digits that some vocabularies take together, from the right of a number.
_GROUP = 3
#: Characters that are taken of a window inside of a number.
_DIGITS = 48
_NUMBER = re.compile("[0-9]*")

Tokenize = Callable[[str], list[int]]


def tokens_of(text: str, tokenize: Tokenize) -> list[int]:
    """The tokens of ``text``. ``tokenize`` gets at most TAKEN + AHEAD characters."""
    tokens: list[int] = []
    numbers = _Numbers(text)
    at = 0
    while len(text) - at > TAKEN + AHEAD:
        most = TAKEN
        end = at + TAKEN + AHEAD
        if (
            numbers.end(at) > end
        ):  # some expressions look at all that follows from each digit
            most = _DIGITS
            end = at + 2 * _DIGITS
        if text[end - 1] in "0123456789":
            # A window ends whole groups before the end of a number: then they are the number's.
            end -= (end - numbers.end(end)) % _GROUP
        taken, length = _taken(text[at:end], tokenize, most)
        tokens += taken
        at += length
    return tokens + tokenize(text[at:])


class _Numbers:
    """Where the numbers of a text end. Each is looked through once, so that a text of digits alone
    takes no longer than another."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = self._end = 0

    def end(self, at: int) -> int:
        """The end of the digits from `at` on."""
        if not self._start <= at < self._end:
            match = _NUMBER.match(self._text, at)
            self._start = at
            self._end = at if match is None else match.end()
        return self._end


def _taken(window: str, tokenize: Tokenize, most: int) -> tuple[list[int], int]:
    """The tokens that are taken of a window, and how many characters they are, `most` at most."""
    whole = tokenize(window)
    for place in _places(window, most):
        rest = tokenize(window[place:])
        if rest and whole[len(whole) - len(rest) :] == rest:
            return whole[: len(whole) - len(rest)], place
    return _cut_anywhere(window, tokenize, most)


def _cut_anywhere(window: str, tokenize: Tokenize, most: int) -> tuple[list[int], int]:
    return tokenize(window[:most]), most


def _places(window: str, most: int) -> Iterator[int]:
    """Where a window may be taken up to, likely ones first: the last beginnings of a word, then the
    last places at all, which the period of a pattern is shorter than."""
    words = (
        i
        for i in range(most, most // 2, -1)
        if window[i] == " " and window[i - 1].isalnum() and window[i + 1].isalnum()
    )
    for _, place in zip(range(4), words, strict=False):
        yield place
    yield from range(most, most - _TRIED, -1)
