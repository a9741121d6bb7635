"""docs/development.md: its files and variables exist, and the code keeps the bounds that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import code_figures
import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "development.md").read_text("utf-8")
ANSWERS = re.findall(r"^\| .+ \| `([\w/.]+)` \| `(\w+)` \|$", PAGE, re.MULTILINE)
CODE = code_figures.figures_of(
    path
    for folder in ("ggext", "converters")
    for path in code_figures.modules(ROOT / folder)
)
EVERYTHING = [
    path
    for folder in ("ggext", "converters", "tests", "tools", "benchmarks", "examples")
    for path in code_figures.modules(ROOT / folder)
]


def test_the_page_answers_36_questions() -> None:
    assert len(ANSWERS) == 36


@pytest.mark.parametrize(
    ("file", "name"), ANSWERS, ids=[f"{f}:{n}" for f, n in ANSWERS]
)
def test_the_answer_is_where_the_page_says(file: str, name: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert re.search(rf"^(?:def |class |.*\b){name}\b", text, re.MULTILINE)


def variables(paths: list[Path], pattern: str) -> set[str]:
    return {
        name for path in paths for name in re.findall(pattern, path.read_text("utf-8"))
    }


def test_the_page_lists_the_environment_variables_that_the_code_reads() -> None:
    listed = set(re.findall(r"`(GGEXT_\w+)`", PAGE))
    read = variables(EVERYTHING, r"environ(?:\.get\(|\[)\s*[\"'](GGEXT_\w+)")
    read |= variables([*(ROOT / ".ci").iterdir()], r"\$\{(GGEXT_\w+):")
    options = variables(
        [ROOT / "CMakeLists.txt"], r"(?m)^\s*(?:option|set)\((GGEXT_\w+)[^)]*CACHE"
    )
    options |= variables([ROOT / "CMakeLists.txt"], r"(?m)^\s*option\((GGEXT_\w+)")
    assert listed == read | options


def test_no_line_of_code_is_over_100_columns() -> None:
    assert CODE.long_lines == 0


def test_the_formatter_is_skipped_for_tables_of_data_only() -> None:
    assert sum(p.read_text("utf-8").count("# fmt: skip\n") for p in EVERYTHING) <= 20


def test_code_is_no_denser_than_it_was() -> None:
    assert CODE.tokens_a_line <= 7.5


def test_comments_say_why() -> None:
    assert CODE.comments >= 0.02


def fields_in_the_docstring(node: ast.ClassDef) -> list[str]:
    """Annotated fields of a class that its docstring explains, as ``name``: or `name`:."""
    text = ast.get_docstring(node) or ""
    names = [field.target for field in node.body if isinstance(field, ast.AnnAssign)]
    return [
        name.id
        for name in names
        if isinstance(name, ast.Name) and re.search(rf"`{re.escape(name.id)}``?:", text)
    ]


def test_fields_are_explained_where_they_stand() -> None:
    """A comment above each field, in place of a paragraph that nothing can be found in."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for folder in ("ggext", "converters")
        for path in code_figures.modules(ROOT / folder)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and len(fields_in_the_docstring(node)) > 2
    ]
    assert not wrong, "\n".join(wrong)
