"""Long texts with questions whose answers stand in them, filled to an exact number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ggext.errors import UsageError


@dataclass(frozen=True)
class Question:
    """What is asked after a text."""

    # The words of the question.
    text: str
    # How the answer begins; the model goes on from here.
    opening: str
    # What the answer must hold.
    answers: tuple[str, ...]
    # Where in the text the needle stands, from 0 to 1; None: in many places.
    depth: float | None = None
    # Tokens of a generated answer; None: the one answer is held to greedy decoding token by token.
    budget: int | None = None
    # Whether one of the answers is enough.
    any_of: bool = False


@dataclass(frozen=True)
class Sample:
    """A text and its questions, which are one cluster: they share the text."""

    # The task's name.
    task: str
    # The text, its introduction included.
    body: str
    # At least one.
    questions: tuple[Question, ...]


Build = Callable[[int, str], Sample]
Count = Callable[[Sample], int]

_PADDING = (" so", " and", " yes", " .", "\n")


def filled(build: Build, count: Count, target: int, task: str) -> Sample:
    """The sample whose longest prompt, answer included, has `target` tokens or at most 1 less.

    `build(size, padding)` makes a sample of about `size` units of filler and of `padding`, words
    without meaning for the last tokens. Raises UsageError where not even one without filler fits.
    """
    least = count(build(0, ""))
    if least > target:
        raise UsageError(
            f"a length of {target:,} tokens is too short for {task}: its question and needles "
            f"take {least:,}; take longer lengths or fewer questions"
        )
    size = _largest(lambda n: count(build(n, "")), target, least)
    return _padded(build, count, size, target)


def _largest(tokens: Callable[[int], int], target: int, least: int) -> int:
    """The most units that fit, by interpolation: a text of many tokens is counted few times."""
    low = 0
    low_count = least
    high = None
    high_count = 0
    guess = max(1, target - least)
    while high is None or high - low > 1:
        size = tokens(guess)
        if size <= target:
            low = guess
            low_count = size
        else:
            high = guess
            high_count = size
        if high is None:
            guess = low * 2
            continue
        slope = (high_count - low_count) / (high - low)
        ahead = int((target - low_count) / slope) if slope > 0 else 1
        guess = min(max(low + ahead, low + 1), high - 1)
        # Interpolation creeps where the units are uneven: a step of half from time to time.
        if guess in (low + 1, high - 1) and high - low > 8:
            guess = (low + high) // 2
    return low


def _padded(build: Build, count: Count, size: int, target: int) -> Sample:
    """With as many padding words as bring it nearest to the target."""
    best = build(size, "")
    best_count = count(best)
    for word in _PADDING:
        if best_count == target:
            break
        for repeats in range(1, target - best_count + 1):
            sample = build(size, word * repeats)
            tokens = count(sample)
            if tokens > target:
                break
            if tokens > best_count:
                best = sample
                best_count = tokens
    return best
