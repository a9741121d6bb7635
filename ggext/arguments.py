"""Arguments of the public API, held to their types: a wrong one is a UsageError that names it."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ggext.errors import UsageError

#: How a message calls a type.
_NAMES: dict[Any, str] = {
    bool: "True or False",
    bytes: "bytes",
    float: "a number",
    int: "a whole number",
    str: "a text",
    Path: "a pathlib.Path",
    type(None): "None",
}
_TOKENS = re.compile(r"([0-9]+(?:\.[0-9]+)?)([km]?)", re.ASCII)
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+", re.ASCII)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_MOST_COUNT = 2**31 - 1
_HINTS: dict[type[Any], dict[str, Any]] = {}
_MANY: dict[Any, type] = {
    tuple: tuple,
    list: list,
    Sequence: Sequence,
    frozenset: frozenset,
}


def check_fields(instance: Any) -> None:
    """Raises UsageError for a field of a dataclass whose value is of none of its types."""
    hints = _hints(type(instance))
    for field in fields(instance):
        check(field.name, getattr(instance, field.name), hints[field.name])


def check(name: str, value: Any, kind: Any) -> None:
    """Raises UsageError where `value` is not of the type `kind`, an annotation: a class, a union, a
    Literal, or a tuple, a sequence or a mapping of such."""
    if not _fits(value, kind):
        raise UsageError(f"{name} is {value!r:.80}, but must be {_described(kind)}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raises UsageError for a count that is less than ``least``, or more than llama.cpp's 32 bits
    hold."""
    if value < least:
        raise UsageError(f"{name} is {value}, but must be at least {least}")
    if value > _MOST_COUNT:
        raise UsageError(f"{name} is {value}, but must be at most {_MOST_COUNT}")


def parse_tokens(text: str) -> int:
    """The number of tokens that ``text`` means: ``16384``, ``16,384``, ``16k`` (× 1,024), ``1M``
    (× 1,048,576).

    Raises ``ValueError``, whose text says what is accepted.
    """
    plain = text.strip().replace("_", "").lower()
    if _GROUPED.fullmatch(plain):
        plain = plain.replace(",", "")
    match = _TOKENS.fullmatch(plain)
    if match is None:
        raise ValueError(
            f"{text!r} is not a number of tokens such as 16384, 16,384, 16k or 1M"
        )
    count = float(match[1]) * _FACTORS[match[2]]
    if count != int(count):
        raise ValueError(f"{text!r} is {count:,g} tokens, not a whole number")
    return int(count)


def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = _HINTS.get(kind)
    if hints is None:
        hints = _HINTS[kind] = typing.get_type_hints(kind)
    return hints


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    inner = typing.get_args(kind)
    if kind is Any:
        return True
    if kind in (None, type(None)):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(
            value is one or (isinstance(value, str) and value == one) for one in inner
        )
    if origin is not None:
        return _fits_generic(value, origin, inner)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _fits_generic(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    if origin is Callable:
        return callable(value)
    if isinstance(value, str | bytes) or not isinstance(value, origin):
        return False
    if origin is tuple and inner and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in _MANY:
        return all(_fits(one, inner[0]) for one in value)
    if isinstance(value, Mapping):
        return all(
            _fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items()
        )
    return True


def _described(kind: Any) -> str:
    origin = typing.get_origin(kind)
    inner = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _either(map(_described, inner))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is Callable:
        return "a function"
    if origin in _MANY:
        return f"a {origin.__name__.lower()}, each {_described(inner[0])}"
    if origin is not None:
        return f"a {origin.__name__.lower()}"
    return _NAMES.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _either(words: Iterable[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} or {last}" if before else last
