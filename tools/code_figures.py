"""The figures of docs/development.md: how long, how dense and how explained the code is.

    python tools/code_figures.py [FOLDER ...]   a column for each folder, ggext/ and converters/ alone

Definitions, the same for every tree that is measured:

- a code line has a token that is no comment and no docstring; blank lines are none;
- tokens are those of `tokenize` without comments, docstrings, line ends and indentation;
- a comment line holds nothing but a comment; a trailing `noqa` does not make a line long;
- a function's lines go from its `def` to its end, its docstring included.
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 100
#: What tells a linter something; no reader has to scroll for it.
_PRAGMA = re.compile(r"  # (?:noqa|type: ignore).*")
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = _Function | ast.ClassDef | ast.Module


@dataclass
class Figures:
    """Counts over some modules."""

    # Lines of each module, blank ones included.
    module_lines: list[int] = field(default_factory=list)
    # Lines of each function.
    function_lines: list[int] = field(default_factory=list)
    # Functions with more than six parameters.
    many_parameters: int = 0
    lines: int = 0
    code_lines: int = 0
    comment_lines: int = 0
    tokens: int = 0
    # Characters of code lines, indentation and comments left out.
    characters: int = 0
    # Code lines with more than COLUMNS columns.
    long_lines: int = 0
    # `a, b = x, y`.
    tuple_assignments: int = 0
    conditional_expressions: int = 0
    # Of these, arguments of a call.
    conditional_arguments: int = 0
    skips_of_the_formatter: int = 0

    @property
    def tokens_a_line(self) -> float:
        return self.tokens / self.code_lines

    @property
    def comments(self) -> float:
        """The part of all lines that only comment."""
        return self.comment_lines / self.lines

    def add(self, source: str) -> None:
        tree = ast.parse(source)
        self.module_lines.append(source.count("\n"))
        self.lines += source.count("\n")
        self._add_tokens(source, set(_docstring_lines(tree)))
        for node in ast.walk(tree):
            if isinstance(node, _Function):
                self._add_function(node)
            elif isinstance(node, ast.Assign):
                self.tuple_assignments += _is_tuple_assignment(node)
            elif isinstance(node, ast.IfExp):
                self.conditional_expressions += 1
            elif isinstance(node, ast.Call):
                self.conditional_arguments += sum(
                    map(_is_conditional, _values_of(node))
                )

    def _add_tokens(self, source: str, docstrings: set[int]) -> None:
        lines = source.splitlines()
        code: set[int] = set()
        comments: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            first, last = token.start[0], token.end[0]
            if token.type == tokenize.COMMENT:
                self.skips_of_the_formatter += token.string.startswith("# fmt: skip")
                comments.add(first)
            elif token.type not in _LAYOUT and first not in docstrings:
                self.tokens += 1
                self.characters += len(token.string)
                code.update(range(first, last + 1))
        self.code_lines += len(code)
        self.comment_lines += len(comments - code)
        self.long_lines += sum(
            len(_PRAGMA.sub("", lines[n - 1])) > COLUMNS for n in code
        )

    def _add_function(self, node: _Function) -> None:
        assert node.end_lineno is not None
        self.function_lines.append(node.end_lineno - node.lineno + 1)
        arguments = node.args
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        self.many_parameters += (
            sum(name.arg not in ("self", "cls") for name in names) > 6
        )


def _docstring_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if (
            isinstance(node, _Documented)
            and ast.get_docstring(node, clean=False) is not None
        ):
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            yield from range(docstring.lineno, docstring.end_lineno + 1)


def _is_tuple_assignment(node: ast.Assign) -> bool:
    return isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)


def _values_of(call: ast.Call) -> Iterator[ast.expr]:
    for argument in (*call.args, *call.keywords):
        is_wrapped = isinstance(argument, ast.Starred | ast.keyword)
        yield argument.value if is_wrapped else argument


def _is_conditional(node: ast.expr) -> bool:
    return isinstance(node, ast.IfExp)


def figures_of(paths: Iterable[Path]) -> Figures:
    figures = Figures()
    for path in paths:
        figures.add(path.read_text(encoding="utf-8"))
    return figures


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def rows(figures: Figures) -> dict[str, str]:
    """What a column says, by the name of its row."""
    functions = sorted(figures.function_lines)
    ninth = functions[len(functions) * 9 // 10]
    per_1000 = 1000 / figures.lines
    modules, longest = figures.module_lines, max(figures.module_lines)
    return {
        "modules, lines": f"{len(modules)}, {figures.lines:,}",
        "module, median / longest": f"{statistics.median(modules):.0f} / {longest}",
        "modules over 400 lines": f"{sum(lines > 400 for lines in modules)}",
        "function, median / 90 % / longest": (
            f"{statistics.median(functions):.0f} / {ninth} / {functions[-1]}"
        ),
        "functions over 60 lines": f"{sum(lines > 60 for lines in functions)}",
        "functions with more than 6 parameters": f"{figures.many_parameters}",
        "tokens a code line": f"{figures.tokens_a_line:.1f}",
        "characters a code line": f"{figures.characters / figures.code_lines:.1f}",
        f"code lines over {COLUMNS} columns": f"{figures.long_lines}",
        "comment lines": f"{figures.comments:.1%}",
        "tuple assignments in 1,000 lines": f"{figures.tuple_assignments * per_1000:.1f}",
        "conditional expressions in 1,000 lines": (
            f"{figures.conditional_expressions * per_1000:.1f}"
        ),
        "conditional expressions as arguments": f"{figures.conditional_arguments}",
        "`fmt: skip`": f"{figures.skips_of_the_formatter}",
    }


def main(folders: list[Path]) -> None:
    columns = {str(folder): rows(figures_of(modules(folder))) for folder in folders}
    print("| |", " | ".join(columns), "|")
    print("|---|" + "---|" * len(columns))
    for name in next(iter(columns.values())):
        print(
            f"| {name} |", " | ".join(column[name] for column in columns.values()), "|"
        )


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or [ROOT / "ggext", ROOT / "converters"])
