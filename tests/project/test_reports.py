"""docs/reports.md: every test that a row names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from paths import ROOT

TESTS = ROOT / "tests"
REPORTS = ROOT / "docs" / "reports.md"
_ROW = re.compile(r"^\|.*\|$")
#: The file or the folder that the rows of a section mean where they name none; without it, any.
_USUAL = re.compile(r"^(?:.* stand in )?`tests/([\w/]+/(?:test_\w+\.py)?)`\.$")


def rows() -> list[tuple[str, str]]:
    """Each row's last cell, which names its tests, and the usual file of its section; of the
    sections in which that cell does."""
    found: list[tuple[str, str]] = []
    usual, in_table = "", False
    for line in REPORTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            usual, in_table = "", False
        elif _ROW.match(line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[-1] == "test":
                in_table = True
            elif in_table and not set(cells[-1]) <= {"-"} and cells[-1] != "the same":
                found.append((cells[-1], usual))
        else:
            in_table = False
            if not usual and (match := _USUAL.search(line)):
                usual = match[1]
    return found


def functions(place: str) -> set[str]:
    """The functions of a file, or of a folder's tests."""
    path = TESTS / place
    trees = (
        ast.parse(file.read_text(encoding="utf-8"))
        for file in (path.glob("test_*.py") if path.is_dir() else [path])
    )
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def test_every_row_names_tests_that_exist() -> None:
    named = rows()
    assert len(named) > 30
    files = {path.name: str(path) for path in TESTS.rglob("test_*.py")}
    anywhere = {name for file in files.values() for name in functions(file)}
    for cell, usual in named:
        file, tests = usual, 0
        for name in re.findall(r"`([^`]+)`", cell):
            if name.endswith(".py"):
                assert Path(name).name in files, f"{name} of {cell}"
                file = files[Path(name).name]
                tests += 1
                continue
            assert name in (functions(file) if file else anywhere), (
                f"{name} is not in {file}"
            )
            tests += 1
        assert tests, f"the row {cell!r} names no test"
