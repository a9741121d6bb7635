"""A jinja2 environment for templates that came with a stranger's file.

jinja2's own sandbox keeps a template from Python's insides and caps ``range``. Time and memory are
bounded by the process that this runs in (`ggext.chat.render_child`). What a template can blow up in
one operation (``+ ~ * % **``, padding, ``replace``, ``join``) is checked before it is done all the
same: the refusal then says what it was, and it holds on systems that limit no memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

# These draw HTML, or print what lies inside an object.
_LEFT_OUT = ("urlize", "xmlattr", "pprint")
_MAX_PADDING = 1_000
_PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")
_MAX_BITS = 4096
# A width or precision of four digits, or one that an argument gives: both pad.
_PADS = re.compile(r"\d{4}|%[-+ #0]*\*|\.\*")


class LimitError(SecurityError):
    """The template asked for more time or text than any chat needs."""


class _GenerationTag(Extension):
    """transformers' {% generation %} block: a mark for training, without effect on the text."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Generator(CodeGenerator):
    """Compiles ``a ~ b`` to a call of the environment, which checks the length first."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that transformers renders chat templates in, with limits.

    ``max_text``: characters that any text inside the template may have; may be changed.
    """

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self, max_text: int) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
            finalize=self._printable,
        )
        self.max_text = max_text
        for name in _LEFT_OUT:
            del self.filters[name]
        self.filters |= {
            "tojson": self._tojson,
            "indent": self._indent,
            "replace": self._replaced,
            "string": self._text,
            "center": self._centered,
            "format": self._percent,
        }
        self.filters = {
            name: self._bounded(filter_) for name, filter_ in self.filters.items()
        }
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make a text or number too long, checked first."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length()
            if operator in ("*", "**") and bits + right.bit_length() > _MAX_BITS:
                raise LimitError(f"a number of more than {_MAX_BITS} bits")
        if operator == "%" and isinstance(left, str):
            self._weigh(right)
            _check_form(left)
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(items, str | list | tuple) and isinstance(times, int):
                    self._check(len(items) * times)
        if operator == "+" and isinstance(left, str | list | tuple):
            self._check(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def concatenated(self, parts: tuple[Any, ...]) -> str:
        """``a ~ b ~ ...``"""
        return self._joined(parts, "")

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call in the template; methods of texts are checked."""
        text = getattr(function, "__self__", None)
        if not isinstance(text, str):
            return super().call(context, function, *args, **kwargs)
        for name in (
            "_loop_vars",
            "_block_vars",
        ):  # jinja2's own, for what takes a context
            kwargs.pop(name, None)
        name = function.__name__
        if name in _PADDING:
            _check_padding(*args, *kwargs.values())
        if name == "replace":
            return self._replaced(text, *args, **kwargs)
        if name == "join":
            fields = args[0] if args else ()
            return self._joined(fields, text)
        return function(*args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """``str.format`` as jinja2's sandbox does it, its widths bounded."""
        name = getattr(value, "__name__", "")
        text = getattr(value, "__self__", None)
        if name not in ("format", "format_map") or not isinstance(text, str):
            return None
        formatter = _Formatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            if name == "format_map":
                return formatter.vformat(str(text), (), _mapping(*args))
            return formatter.vformat(str(text), args, kwargs)

        return formatted

    def _percent(self, value: str, *args: Any, **kwargs: Any) -> str:
        self._weigh([args, kwargs])
        _check_form(value)
        return str(value) % (kwargs or args)

    def _centered(self, value: Any, width: int = 80) -> str:
        _check_padding(width)
        return self._text(value).center(width)

    def _bounded(self, filter_: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(filter_)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            result = filter_(*args, **kwargs)
            if isinstance(result, str):
                self._check(len(result))
            return result

        return bounded

    def _printable(self, value: Any) -> Any:
        self._weigh(value)
        return value

    def _text(self, value: Any) -> str:
        self._weigh(value)
        return str(value)

    def _joined(self, items: Iterable[Any], separator: str) -> str:
        texts = [self._text(item) for item in items]
        self._check(sum(map(len, texts)) + len(texts) * len(separator))
        return separator.join(texts)

    def _replaced(
        self, value: Any, old: str, new: str, count: int | None = None
    ) -> str:
        text = self._text(value)
        self._check(len(text) + text.count(old) * len(new))
        most = -1 if count is None else count
        return text.replace(old, new, most)

    def _indent(
        self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        _check_padding(width)
        pad = width if isinstance(width, str) else " " * width
        lines = self._text(value).split("\n")
        self._check(sum(map(len, lines)) + len(lines) * (len(pad) + 1))
        indented = [pad + line if line or blank else line for line in lines[1:]]
        return "\n".join([pad + lines[0] if first else lines[0], *indented])

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        self._weigh(value)
        _check_padding(indent)
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def _weigh(self, value: Any) -> None:
        """Counts what a list or dict holds: one that holds itself twice, many times, never ends."""
        weight = 0
        waiting = [value]
        while waiting:
            item = waiting.pop()
            weight += len(item) if isinstance(item, str) else 1
            self._check(weight)
            if isinstance(item, dict):
                waiting += [*item, *item.values()]
            elif isinstance(item, list | tuple):
                waiting += item

    def _check(self, length: int) -> None:
        if length > self.max_text:
            raise LimitError(
                f"a text of {length} characters, more than {self.max_text}"
            )


class _Formatter(SandboxedFormatter):
    """Fields of ``str.format``; a width, which an argument may give, is checked before it pads."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_form(format_spec)
        return super().format_field(value, format_spec)


def _mapping(value: Any = None, *more: Any) -> Mapping[str, Any]:
    if more or not isinstance(value, Mapping):
        raise TypeError("format_map takes one mapping")
    return value


def _check_form(form: str) -> None:
    if _PADS.search(form):
        raise LimitError(f"padding to more than {_MAX_PADDING} characters")


def _check_padding(*values: Any) -> None:
    if any(isinstance(value, int) and value > _MAX_PADDING for value in values):
        raise LimitError(f"padding to more than {_MAX_PADDING} characters")


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
