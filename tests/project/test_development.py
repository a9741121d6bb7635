"""docs/development.md: its files and variables exist, and the code keeps the bounds that it names."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
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
#: Data of the tests, and programs that look for faults with them.
LONG_TABLES = (
    "tests/hostile/",
    "tests/support/family_rows.py",
    "tests/support/random_models.py",
    "tests/support/sized_gguf.py",
    "tests/support/tiny_gguf.py",
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


def test_a_module_has_one_subject() -> None:
    """What is longer than 400 lines has two. Tables of test data may be long."""
    long = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for path in EVERYTHING
        if path.relative_to(ROOT).parts[0] in ("ggext", "converters", "tests")
    }
    wrong = [f"{path}: {lines}" for path, lines in long.items() if lines > 400]
    assert not [line for line in wrong if not line.startswith(LONG_TABLES)]


def test_a_test_file_is_found_by_its_name() -> None:
    names = [path.name for path in EVERYTHING if path.is_relative_to(ROOT / "tests")]
    counts = Counter(name for name in names if name != "conftest.py")
    assert not [name for name, count in counts.items() if count > 1]


def test_a_function_fits_on_a_screen() -> None:
    assert max(CODE.function_lines) <= 60


def test_values_are_assigned_one_by_one() -> None:
    """But for constants that belong together."""
    assert CODE.tuple_assignments * 1000 / CODE.lines <= 3


def test_no_argument_is_chosen_inside_the_call() -> None:
    assert CODE.conditional_arguments == 0


@pytest.mark.parametrize(
    "call", ["f(a if b else c)", "f(*(a if b else c))", "f(x=a if b else c)"]
)
def test_a_conditional_argument_is_counted(call: str) -> None:
    figures = code_figures.Figures()
    figures.add(f"g({call})")
    assert figures.conditional_arguments == 1


def frozen_fields(path: Path) -> Iterator[tuple[str, str]]:
    """Class and field, and annotation, of what a frozen dataclass holds."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef) and any(
            "frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list
        ):
            for field in node.body:
                if isinstance(field, ast.AnnAssign):
                    name = f"{path.stem}.{node.name}.{ast.unparse(field.target)}"
                    yield name, ast.unparse(field.annotation)


def test_what_is_frozen_holds_nothing_that_can_be_changed() -> None:
    """Mapping, Sequence and tuple: then mypy refuses a change."""
    wrong = [
        f"{name}: {annotation}"
        for folder in ("ggext", "converters")
        for path in code_figures.modules(ROOT / folder)
        for name, annotation in frozen_fields(path)
        if re.search(r"\b(?:list|dict|set)\b", annotation)
    ]
    assert not wrong, "\n".join(wrong)


def lists_of_the_caller(tree: ast.AST) -> Iterator[str]:
    """Function and text of what it puts notes or messages into: a parameter, or one's attribute."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = function.args
            every = [
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
            ]
            names = {parameter.arg for parameter in every} - {"self", "cls"}
            for target in extended(function):
                text = ast.unparse(target)
                if text.split(".")[0] in names and text.endswith("notes"):
                    yield f"{function.name}: {text}"


def extended(tree: ast.AST) -> Iterator[ast.expr]:
    """What ``append``, ``extend``, ``insert`` and ``+=`` make longer."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign):
            yield node.target
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("append", "extend", "insert")
        ):
            yield node.func.value


@pytest.mark.parametrize(
    "body", ["notes.append('a')", "notes += ['a']", "source.notes.extend(['a'])"]
)
def test_a_threaded_note_is_seen(body: str) -> None:
    tree = ast.parse(f"def read(notes: list[str], source: Source) -> None:\n    {body}")
    assert len(list(lists_of_the_caller(tree))) == 1


def test_notes_are_returned() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} {place}"
        for folder in ("ggext", "converters")
        for path in code_figures.modules(ROOT / folder)
        for place in lists_of_the_caller(ast.parse(path.read_text("utf-8")))
    ]
    assert not wrong, "\n".join(wrong)


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
