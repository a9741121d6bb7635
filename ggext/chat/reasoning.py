"""Reasoning blocks: which tags a model's template uses, and which part of an answer stands between
them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_TAG = re.compile(
    r"<(/?)((?:\w+:)?(?:think|thinking|thought|reasoning))>|\[(/?)(THINK)\]|<\|(START|END)_(THINKING)\|>"
)


class Thought(str):
    """A piece of an answer that stands inside a reasoning block."""

    __slots__ = ()


@dataclass(frozen=True)
class Tags:
    """``start`` and ``end`` of a reasoning block; ``headers``: what may stand before the answer
    proper."""

    start: str
    end: str
    headers: tuple[str, ...] = ()


_FINAL = "<|channel|>final<|message|>"
# Models that write channels: gpt-oss, Gemma 4.
_CHANNELS = (
    Tags("<|channel|>analysis<|message|>", "<|end|>", (f"<|start|>assistant{_FINAL}", _FINAL)),
    Tags("<|channel>thought", "<channel|>"),
)


def tags_of(template: str) -> Tags | None:
    """The tags that a chat template names most often, None where it names none.

    One of a pair is enough: some templates write only the end, because they cut the reasoning off
    there.
    """
    for tags in _CHANNELS:
        if tags.start in template:
            return tags
    found: Counter[Tags] = Counter()
    for match in _TAG.finditer(template):
        _, name, _, brackets, _, _ = match.groups()
        if name:
            found[Tags(f"<{name}>", f"</{name}>")] += 1
        elif brackets:
            found[Tags("[THINK]", "[/THINK]")] += 1
        else:
            found[Tags("<|START_THINKING|>", "<|END_THINKING|>")] += 1
    return found.most_common(1)[0][0] if found else None


def opens_reasoning(prompt: str, tags: Tags | None) -> bool:
    """Whether the prompt ends inside a reasoning block, so that the answer begins in it."""
    return tags is not None and prompt.rstrip().endswith(tags.start)


def without_reasoning(prompt: str, tags: Tags) -> str:
    """The prompt with its answer opened behind an empty reasoning block, for templates that cannot
    do it."""
    if prompt.rstrip().endswith(tags.end):
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
        self._opening = not inside and tags is not None  # a tag or header may still come
        self._trim = inside
        self._held = ""

    def feed(self, text: str) -> list[str]:
        """What is certain after this text: pieces without tags, Thought or str."""
        if self._tags is None:
            return [text] if text else []
        self._held += text
        pieces: list[str] = []
        while self._step(self._tags, pieces):
            pass
        return [piece for piece in pieces if piece]

    def end(self) -> list[str]:
        """What was still held back when the answer ended."""
        rest, self._held = self._held, ""
        return [Thought(rest) if self._inside else rest] if rest else []

    def _step(self, tags: Tags, pieces: list[str]) -> bool:
        """Handles one tag, or all the text that no tag can begin in; whether more may follow."""
        if self._inside:
            return self._think(tags, pieces)
        if self._opening:
            return self._open(tags)
        pieces.append(self._take(len(self._held)))
        return False

    def _think(self, tags: Tags, pieces: list[str]) -> bool:
        if self._trim:
            self._held = self._held.lstrip()
            self._trim = not self._held
        thought, end, rest = self._held.partition(tags.end)
        if not end:
            pieces.append(Thought(self._take(len(self._held) - held_back(self._held, [tags.end]))))
            return False
        pieces.append(Thought(thought))
        self._held, self._inside, self._opening = rest, False, True
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
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of one of the marks."""
    longest = max(map(len, marks), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-count:]) for mark in marks):
            return count
    return 0
