"""Reasoning blocks: which tags a model's template uses, and which part of an answer stands between
them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_TAG = re.compile(
    r"<(/?)((?:\w+:)?(?:think|thinking|thought|reasoning)(?::\w+)?)>"
    r"|\[(/?)(THINK)\]|<\|(START|END)_(THINKING)\|>"
)
# A template's marks: what it writes around turns, reasoning, tool calls.
_MARK = re.compile(
    r"<\|[^<>|\s]{1,64}\|?>|<[^<>|\s]{1,64}\|>|<｜[^<>｜]{1,64}｜>"
    r"|</?[A-Za-z][\w:.-]{0,63}>|\[/?[A-Z][A-Z_]{1,63}\]"
)
_CONSTANT = re.compile(r"set\s{1,9}(\w{1,64})\s{0,9}=\s{0,9}'([^'{}\\]{0,64})'")
_FORMATTED = re.compile(r"'([^'{}]{0,64})\{\}([^'{}]{0,64})'\.format\((\w{1,64})\)")


class Thought(str):
    """A piece of an answer that stands inside a reasoning block."""

    __slots__ = ()


@dataclass(frozen=True)
class Tags:
    """The marks of a reasoning block, and of the answer after it."""

    start: str
    end: str
    # What may stand before the answer proper.
    headers: tuple[str, ...] = ()
    # What ends the answer proper, where no token that ends all does.
    trailers: tuple[str, ...] = ()
    # The template says by itself that no reasoning is wanted: no empty block is needed.
    asks_by_itself: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All of them."""
        return (self.start, self.end, *self.headers, *self.trailers)


_FINAL = "<|channel|>final<|message|>"
# What a template names → the marks of its models: gpt-oss, Gemma 4, Kimi K3, Solar Open, Apertus.
_CHANNELS = (
    (
        ("<|channel|>analysis<|message|>",),
        Tags(
            "<|channel|>analysis<|message|>",
            "<|end|>",
            (f"<|start|>assistant{_FINAL}", _FINAL),
        ),
    ),
    (("<|channel>thought",), Tags("<|channel>thought", "<channel|>")),
    (
        ("<|open|>", "<|close|>", "<|end_of_msg|>"),
        Tags(
            "<|open|>think<|sep|>",
            "<|close|>think<|sep|>",
            ("<|open|>response<|sep|>",),
            ("<|close|>response<|sep|>",),
        ),
    ),
    (
        ("<|begin|>assistant<|think|>",),
        Tags(
            "<|think|>",
            "<|end|>",
            ("<|begin|>assistant<|content|>", "<|content|>"),
            ("<|end|>",),
        ),
    ),
    (
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        Tags("<|inner_prefix|>", "<|inner_suffix|>", asks_by_itself=True),
    ),
)


def tags_of(template: str) -> Tags | None:
    """The tags that a chat template names most often, None where it names none.

    One of a pair is enough: some templates write only the end, because they cut the reasoning off
    there.
    """
    template = _with_constants(template)
    for names, tags in _CHANNELS:
        if all(name in template for name in names):
            return tags
    counts: Counter[Tags] = Counter()
    for match in _TAG.finditer(template):
        _, name, _, brackets, _, _ = match.groups()
        if name:
            counts[Tags(f"<{name}>", f"</{name}>")] += 1
        elif brackets:
            counts[Tags("[THINK]", "[/THINK]")] += 1
        else:
            counts[Tags("<|START_THINKING|>", "<|END_THINKING|>")] += 1
    return counts.most_common(1)[0][0] if counts else None


def marks_of(template: str) -> frozenset[str]:
    """Every mark that a template names: it may cut a turn there, or take the turn for another."""
    return frozenset(_MARK.findall(_with_constants(template)))


def guarded(text: str, marks: frozenset[str], guard: str) -> str:
    """The text with the guard inside each of the marks, so that a template does not see them."""

    def inside(match: re.Match[str]) -> str:
        mark = match[0]
        middle = len(mark) // 2
        return f"{mark[:middle]}{guard}{mark[middle:]}" if mark in marks else mark

    return _MARK.sub(inside, text)


def _with_constants(template: str) -> str:
    """The template with its constants in the marks that it makes by ``'<mark{}>'.format(NAME)``."""
    constants = dict(_CONSTANT.findall(template))
    return _FORMATTED.sub(
        lambda match: f"'{match[1]}{constants.get(match[3], '')}{match[2]}'", template
    )


def opens_reasoning(prompt: str, tags: Tags | None) -> bool:
    """Whether the prompt ends inside a reasoning block, so that the answer begins in it."""
    return tags is not None and prompt.rstrip().endswith(tags.start)


def without_reasoning(prompt: str, tags: Tags) -> str:
    """The prompt with its answer opened after an empty reasoning block, for templates that cannot
    do it."""
    if prompt.rstrip().endswith((tags.end, *tags.headers)) or tags.asks_by_itself:
        return prompt
    if tags.headers:
        return prompt + tags.headers[-1]
    opened = "\n" if prompt.endswith(tags.start) else ""
    start = opened if opens_reasoning(prompt, tags) else f"{tags.start}\n"
    return f"{prompt}{start}\n{tags.end}\n\n"


class Splitter:
    """Parts an answer's text into Thought and plain text, as it comes; ``inside``: it begins in a
    block."""

    def __init__(self, tags: Tags | None, inside: bool = False) -> None:
        self._tags = tags
        self._inside = inside
        self._opening = (
            not inside and tags is not None
        )  # a tag or header may still come
        self._trim = inside
        self._over = False  # a trailer ended the answer
        self._held = ""

    def feed(self, text: str) -> list[str]:
        """What is certain after this text: pieces without tags, Thought or str."""
        if self._tags is None:
            return [text] if text else []
        if self._over:
            return []
        self._held += text
        pieces: list[str] = []
        while self._step(self._tags, pieces):
            pass
        return [piece for piece in pieces if piece]

    def end(self) -> list[str]:
        """What was still held back when the answer ended."""
        rest = self._held
        self._held = ""
        return [Thought(rest) if self._inside else rest] if rest else []

    def _step(self, tags: Tags, pieces: list[str]) -> bool:
        """Handles one tag, or all the text that no tag can begin in; whether more may follow."""
        if self._inside:
            return self._think(tags, pieces)
        if self._opening:
            return self._open(tags)
        return self._answer(tags, pieces)

    def _answer(self, tags: Tags, pieces: list[str]) -> bool:
        places = [self._held.find(trailer) for trailer in tags.trailers]
        end = min((place for place in places if place >= 0), default=None)
        if end is None:
            pieces.append(
                self._take(len(self._held) - held_back(self._held, tags.trailers))
            )
            return False
        pieces.append(self._take(end))
        self._held = ""
        self._over = True
        return False

    def _think(self, tags: Tags, pieces: list[str]) -> bool:
        if self._trim:
            self._held = self._held.lstrip()
            self._trim = not self._held
        thought, end, rest = self._held.partition(tags.end)
        if not end:
            pieces.append(
                Thought(self._take(len(self._held) - held_back(self._held, [tags.end])))
            )
            return False
        pieces.append(Thought(thought))
        self._held = rest
        self._inside = False
        self._opening = True
        return True

    def _open(self, tags: Tags) -> bool:
        text = self._held.lstrip()
        marks = (tags.start, *tags.headers)
        mark = next((mark for mark in marks if text.startswith(mark)), None)
        if mark is None:
            if any(mark.startswith(text) for mark in marks):
                return False
            self._opening = False
            self._held = text
            return True
        self._held = text.removeprefix(mark)
        self._inside = self._trim = mark == tags.start
        self._opening = self._inside
        return True

    def _take(self, count: int) -> str:
        taken = self._held[:count]
        self._held = self._held[count:]
        return taken


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of one of the marks."""
    longest = max(map(len, marks), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-count:]) for mark in marks):
            return count
    return 0
