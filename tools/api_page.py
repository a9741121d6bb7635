"""The Python interface, as docs/api.md shows it: from the docstrings and the comments above fields.

python tools/api_page.py > docs/api.md
"""

from __future__ import annotations

import ast
import sys
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from wrap_pages import wrapped

#: Section → its names, each as the module from which a program imports it and the name there.
SECTIONS = {
    "Run a model": (
        "ggext.Model ggext.Settings ggext.SessionOptions ggext.MemoryOptions ggext.PrefixOptions"
        " ggext.TemplateChoice ggext.Sampling ggext.json_grammar ggext.freeze_support"
    ),
    "Answers": (
        "ggext.Reply ggext.ReplyEvent ggext.Reading ggext.Reasoning ggext.Text ggext.Turn"
    ),
    "Bake and prove": (
        "ggext.convert.ConvertOptions ggext.convert.convert ggext.verify.verify"
        " ggext.RopeScaling ggext.RopeGeometry ggext.RopeTable"
    ),
    "Measure": (
        "ggext.evaluate ggext.EvalOptions ggext.EvalReport"
        " ggext.search.search ggext.search.SearchOptions ggext.search.SearchResult"
    ),
    "Errors": "ggext.GgextError ggext.ContextFullError ggext.EngineDiedError",
}

#: Classes that a program makes itself and that are no dataclasses, whose fields say how.
_CONSTRUCTED = ("Model",)

_HEAD = """# The Python interface

<!-- made by `python tools/api_page.py > docs/api.md`; a test fails when it is stale -->

These names stay from one release to the next; what else a module holds may change. An error is a
`ggext.GgextError`: one line with the object, the value and the remedy. More examples are in
[runtime.md](runtime.md#in-a-program). `ggext.__version__` is the version.
"""


@dataclass(frozen=True)
class _Definition:
    # The statement that defines the name.
    node: ast.stmt
    # The lines of its module, for the comments above fields.
    lines: list[str]


def names() -> set[str]:
    """What the page describes."""
    return {name for section in SECTIONS.values() for name in section.split()}


def page() -> str:
    parts = [_HEAD]
    for section, listed in SECTIONS.items():
        parts.append(f"## {section}\n")
        for name in listed.split():
            module, _, last = name.rpartition(".")
            parts.append(_entry(module, last))
    return wrapped("\n".join(parts))


def _definition(module: str, name: str) -> _Definition:
    """Where a name is defined, found from where it is imported."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"{module} has no source")
    source = Path(spec.origin).read_text("utf-8")
    origin = None
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef() | ast.FunctionDef() if node.name == name:
                return _Definition(node, source.splitlines())
            case ast.Assign(targets=[ast.Name(id=target)]) if target == name:
                return _Definition(node, source.splitlines())
            case ast.ImportFrom(module=str(imported)):
                if any((alias.asname or alias.name) == name for alias in node.names):
                    origin = imported
    if origin is None:
        raise LookupError(f"{module} defines no {name}")
    return _definition(origin, name)


def _entry(module: str, name: str) -> str:
    definition = _definition(module, name)
    node = definition.node
    head = f"### {name}\n\n`from {module} import {name}`\n"
    match node:
        case ast.ClassDef():
            return "\n".join([head, *_class(node, definition.lines)])
        case ast.FunctionDef():
            return "\n".join(
                [head, _code(_signature(node)), _text(ast.get_docstring(node))]
            )
        case _:
            return "\n".join([head, _code(ast.unparse(node))])


def _class(node: ast.ClassDef, lines: list[str]) -> list[str]:
    parts = [_text(ast.get_docstring(node))]
    fields = [
        _field(child, lines) for child in node.body if isinstance(child, ast.AnnAssign)
    ]
    if fields:
        parts.append("\n".join(fields) + "\n")
    for child in node.body:
        if not isinstance(child, ast.FunctionDef):
            continue
        if child.name == "__init__" and node.name in _CONSTRUCTED:
            parts.append(_code(_signature(child).replace("__init__", node.name)))
        elif not child.name.startswith("_") and ast.get_docstring(child):
            parts += [f"#### {node.name}.{child.name}\n", _code(_signature(child))]
            parts.append(_text(ast.get_docstring(child)))
    return parts


def _field(node: ast.AnnAssign, lines: list[str]) -> str:
    """One field: its name, type and default, and the comment above it."""
    comments: list[str] = []
    above = node.lineno - 2
    while lines[above].lstrip().startswith("# "):
        comments.insert(0, lines[above].strip().removeprefix("# "))
        above -= 1
    said = ": " + " ".join(comments) if comments else ""
    return f"- `{ast.unparse(node)}`{said.replace('``', '`')}"


def _signature(node: ast.FunctionDef) -> str:
    """A method or function as it is called: no self, one argument a line where it is long."""
    arguments = node.args
    if arguments.args and arguments.args[0].arg == "self":
        arguments.args = arguments.args[1:]
    if any(
        isinstance(each, ast.Name) and each.id == "property"
        for each in node.decorator_list
    ):
        call = node.name
    else:
        call = f"{node.name}({ast.unparse(arguments)})"
    result = ""
    if node.returns is not None and node.name != "__init__":
        separator = " -> " if call.endswith(")") else ": "
        result = separator + ast.unparse(node.returns)
    return "\n".join(textwrap.wrap(call + result, 96, subsequent_indent="    "))


def _code(source: str) -> str:
    return f"```python\n{source}\n```\n"


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: examples as blocks, its double backticks as single ones."""
    paragraphs = []
    for paragraph in (docstring or "").replace("``", "`").split("\n\n"):
        example = paragraph.startswith(">>>")
        paragraphs.append(f"```pycon\n{paragraph}\n```" if example else paragraph)
    return "\n\n".join(paragraphs) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
