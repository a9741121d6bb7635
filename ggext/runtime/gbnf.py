"""GBNF, llama.cpp's notation for grammars: read within bounds, and written as Lark for llguidance.

llama.cpp's own reader ends the process on deep nesting, and its sampler follows every way to read a
text at once, which can grow without end. So a grammar is read here, and an Earley parser
(llguidance) follows it. Each character is a terminal of its own there: a longer one would be
matched greedily, which GBNF does not do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from ggext.errors import UsageError
from ggext.runtime.chains import longest_chain

MAX_TEXT = 1 << 20
MAX_DEPTH = 100
MAX_REPEATS = 2_000  # llama.cpp's bound for one repetition
MAX_SYMBOLS = 60_000  # with repetitions written out; llguidance numbers them in 16 bits
# Rules and parentheses that lead to one another: llguidance follows by recursion.
MAX_CHAIN = 200
#: Where the name of a token stands in `Lark.source`: whether it is negated, which of ``spelled``.
SPELLED_TOKEN = re.compile("\0(\\^?)([0-9]+)\0")

_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_BOUNDS = re.compile(r"\{\s*([0-9]{1,9})\s*(?:(,)\s*([0-9]{1,9})?\s*)?\}")
_TOKEN = re.compile(r"(!?)<(?:\[([0-9]{1,9})\]|([^<>\s\[\]]{1,200}))>")
_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([tnr\\\"\[\]-]))"
)
_PLAIN_ESCAPES = {"t": 9, "n": 10, "r": 13}
_ANY = r"/(?s:.)/"


@dataclass(frozen=True)
class Lark:
    """A grammar in Lark's notation."""

    source: str
    # Symbols, repetitions written out.
    size: int
    # Numbers of tokens that it names, which the vocabulary must have.
    tokens: tuple[int, ...] = ()
    # Tokens that it names by their text: `SPELLED_TOKEN` stands for them in the source.
    spelled: tuple[str, ...] = ()


def to_lark(grammar: str) -> Lark:
    r"""The same language in Lark's notation.

    Raises UsageError for what is not GBNF with a rule ``root``, or too large.

    >>> print(to_lark('root ::= "a" [b-c]*').source)
    %llguidance {}
    start: r_root
    r_root: /\x{61}/ (/[\x{62}-\x{63}]/)*
    """
    if len(grammar) > MAX_TEXT:
        raise UsageError(
            f"the grammar has {len(grammar)} characters, more than {MAX_TEXT}"
        )
    return _Reader(grammar).read()


@dataclass
class _Item:
    """A part of a rule: its Lark, empty for the empty text, and its symbols, repetitions written
    out."""

    text: str
    size: int = 1


@dataclass
class _Reader:
    """Reads one grammar from left to right."""

    text: str
    at: int = 0
    size: int = 0
    # Name of a rule → where it is first named.
    references: dict[str, int] = field(default_factory=dict)
    # Name of a rule → the rules that it names.
    leads_to: dict[str, set[str]] = field(default_factory=dict)
    # Name of a rule → its Lark.
    rules: dict[str, str] = field(default_factory=dict)
    # Name of a rule → how deep its parentheses are nested, itself included.
    depths: dict[str, int] = field(default_factory=dict)
    deepest: int = 0
    # Of the rule that is read.
    named: set[str] = field(default_factory=set)
    tokens: list[int] = field(default_factory=list)
    spelled: list[str] = field(default_factory=list)

    def read(self) -> Lark:
        """The whole grammar."""
        self._skip(_SPACE_AND_LINES)
        while self.at < len(self.text):
            self._rule()
        if "root" not in self.rules:
            self._refuse("it has no such rule", None)
        for name, at in self.references.items():
            if name not in self.rules:
                self._refuse(f"the rule {name:.80} is not defined", at)
        if longest_chain(self.leads_to, self.depths) > MAX_CHAIN:
            self._refuse(
                f"more than {MAX_CHAIN} of its rules lead to one another", None
            )
        lines = [f"{_lark_name(name)}: {rule}" for name, rule in self.rules.items()]
        source = "\n".join(["%llguidance {}", "start: r_root", *lines])
        return Lark(source, self.size, tuple(self.tokens), tuple(self.spelled))

    def _rule(self) -> None:
        start = self.at
        name = self._name()
        self._skip(_SPACE)
        if not self.text.startswith("::=", self.at):
            self._refuse("::= is expected", self.at)
        self.at += 3
        self._skip(_SPACE_AND_LINES)
        self.deepest = 0
        self.named = self.leads_to.setdefault(name, set())
        rule = self._alternatives(0)
        if name in self.rules:
            self._refuse(f"the rule {name:.80} is defined twice", start)
        self.rules[name] = rule.text
        self.depths[name] = self.deepest + 1
        self.size += rule.size + 1
        if self.size > MAX_SYMBOLS:
            self._refuse(f"it has more than {MAX_SYMBOLS:,} symbols", start)
        if self.at < len(self.text) and self.text[self.at] not in "\r\n":
            self._refuse("a part of a rule is expected", self.at)
        self._skip(_SPACE_AND_LINES)

    def _alternatives(self, depth: int) -> _Item:
        self.deepest = max(self.deepest, depth)
        if depth > MAX_DEPTH:
            self._refuse(f"parentheses are nested more than {MAX_DEPTH} deep", self.at)
        items = [self._sequence(depth)]
        size = items[0].size
        while self.text.startswith("|", self.at):
            self.at += 1
            self._skip(_SPACE_AND_LINES)
            items.append(self._sequence(depth))
            size += items[-1].size + 1
            if size > MAX_SYMBOLS:
                self._refuse(f"it has more than {MAX_SYMBOLS:,} symbols", self.at)
        return _Item(" | ".join(item.text or '""' for item in items), size)

    def _sequence(self, depth: int) -> _Item:
        items: list[_Item] = []
        space = _SPACE_AND_LINES if depth else _SPACE
        while (item := self._item(depth)) is not None:
            self._skip(space)
            items.append(self._repeated(item, space))
        text = " ".join(item.text for item in items if item.text)
        return _Item(text, sum(item.size for item in items))

    def _item(self, depth: int) -> _Item | None:
        sign = self.text[self.at : self.at + 1]
        if sign == '"':
            return self._literal()
        if sign == "[":
            return self._class()
        if sign == "(":
            return self._group(depth)
        if sign == ".":
            self.at += 1
            return _Item(_ANY)
        if sign in ("<", "!"):
            return self._token()
        if _NAME.match(sign):
            return self._reference()
        if sign in ("*", "+", "?", "{"):
            self._refuse("there is nothing that could be repeated", self.at)
        return None

    def _reference(self) -> _Item:
        at = self.at
        name = self._name()
        self.references.setdefault(name, at)
        self.named.add(name)
        return _Item(_lark_name(name))

    def _repeated(self, item: _Item, space: re.Pattern[str]) -> _Item:
        while (sign := self.text[self.at : self.at + 1]) in ("*", "+", "?", "{"):
            low, high = self._bounds(sign)
            self._skip(space)
            item = self._times(item, low, high)
        return item

    def _bounds(self, sign: str) -> tuple[int, int | None]:
        at = self.at
        if sign != "{":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        match = _BOUNDS.match(self.text, at)
        if match is None:
            self._refuse(
                "a repetition is not {N}, {N,} or {N,M} with small numbers", at
            )
        self.at = match.end()
        low = int(match[1])
        high: int | None = low
        if match[2]:
            high = int(match[3]) if match[3] else None
        if high is not None and high < low:
            self._refuse(f"a repetition ends below its beginning: {match[0]:.40}", at)
        if max(low, high or 0) > MAX_REPEATS:
            self._refuse(f"a repetition of more than {MAX_REPEATS:,}", at)
        return low, high

    def _times(self, item: _Item, low: int, high: int | None) -> _Item:
        size = item.size * max(low, high or 0, 1) + 1
        if size > MAX_SYMBOLS:
            self._refuse(
                f"its repetitions make more than {MAX_SYMBOLS:,} symbols", self.at
            )
        if not item.text or high == 0:
            return _Item("", 0)
        named = {(0, None): "*", (1, None): "+", (0, 1): "?"}
        most = "" if high is None else str(high)
        times = named.get((low, high), f"{{{low},{most}}}")
        return _Item(f"({item.text}){times}", size)

    def _group(self, depth: int) -> _Item:
        start = self.at
        self.at += 1
        self._skip(_SPACE_AND_LINES)
        inside = self._alternatives(depth + 1)
        if not self.text.startswith(")", self.at):
            self._refuse("a parenthesis is not closed", start)
        self.at += 1
        return _Item(f"({inside.text})", inside.size + 1)

    def _literal(self) -> _Item:
        start = self.at
        self.at += 1
        points: list[int] = []
        while not self.text.startswith('"', self.at):
            points.append(self._character(start))
        self.at += 1
        return _Item(" ".join(f"/{_point(point)}/" for point in points), len(points))

    def _class(self) -> _Item:
        start = self.at
        self.at += 1
        negated = self.text.startswith("^", self.at)
        self.at += negated
        members = ""
        while not self.text.startswith("]", self.at):
            low = high = self._character(start)
            if self.text.startswith("-", self.at) and not self.text.startswith(
                "-]", self.at
            ):
                self.at += 1
                high = self._character(start)
            if high < low:
                self._refuse("a range of characters ends below its beginning", start)
            members += _point(low) if low == high else f"{_point(low)}-{_point(high)}"
        self.at += 1
        if members:
            return _Item(f"/[{'^' * negated}{members}]/")
        if not negated:
            self._refuse("a class of characters is empty", start)
        return _Item(_ANY)

    def _character(self, start: int) -> int:
        if self.at >= len(self.text):
            self._refuse("what begins here does not end", start)
        at = self.at
        if self.text[at] != "\\":
            self.at += 1
            return self._checked(ord(self.text[at]), at)
        match = _ESCAPE.match(self.text, at)
        if match is None:
            self._refuse("there is no such escape", at)
        self.at = match.end()
        if match[4]:
            return _PLAIN_ESCAPES.get(match[4], ord(match[4]))
        return self._checked(int(match[1] or match[2] or match[3], 16), at)

    def _checked(self, point: int, at: int) -> int:
        if point > _LAST_CODE_POINT or point in _SURROGATES:
            self._refuse(f"U+{point:04X} is not a character", at)
        return point

    def _token(self) -> _Item:
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            self._refuse("a token is not <[NUMBER]> or <NAME>", self.at)
        self.at = match.end()
        negated = "^" if match[1] else ""
        if match[2]:
            self.tokens.append(int(match[2]))
            return _Item(f"<[{negated}{int(match[2])}]>")
        self.spelled.append(f"<{match[3]}>")
        return _Item(f"\0{negated}{len(self.spelled) - 1}\0")

    def _name(self) -> str:
        match = _NAME.match(self.text, self.at)
        if match is None:
            self._refuse("the name of a rule is expected", self.at)
        self.at = match.end()
        return match[0]

    def _skip(self, space: re.Pattern[str]) -> None:
        match = space.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _refuse(self, why: str, at: int | None) -> NoReturn:
        line = "" if at is None else f", line {self.text.count(chr(10), 0, at) + 1}"
        raise UsageError(f"the grammar is not GBNF with a rule root{line}: {why}")


def _point(point: int) -> str:
    return f"\\x{{{point:X}}}"


def _lark_name(name: str) -> str:
    """A rule's name for Lark: small letters, digits and _; others are spelled by their number."""
    plain = (c if c.islower() or c.isdigit() else f"_{ord(c):x}_" for c in name)
    return f"r_{''.join(plain)}"
