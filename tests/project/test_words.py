"""Plain English in comments, docstrings, messages and pages: the words that readers trip over."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

#: Word → what is meant instead.
UNPLAIN = {
    "anew": "again",
    "beside": "next to, in addition to",
    "besides": "also, in addition",
    "begun": "started",
    "behind": "after",
    "goes on with": "continues",
    "gone on with": "continued",
    "manieth": "n-th",
    "nobody": "no one; or say who",
    "shall": "must, should",
    "somebody": "someone",
    "thereof": "of it",
    "told": "reported, said",
    "whereof": "of which",
}
#: Where such a word is right.
RIGHT = re.compile(
    r"behind the caller's back|(?:left|leaves?|leave \w+ \w+|leaves \w+(?: \w+)?|debuggers left) behind|cannot be told"
)
#: Pages that are made from the code and from texts of tools/.
GENERATED = ("api.md", "families.md", "commands.md")
#: Data that a model reads.
DATA = ("ggext/quality/words.py", "ggext/data/demo_language.py")
_WORD = re.compile(rf"(?<![\w-])(?:{'|'.join(UNPLAIN)})(?![\w-])", re.IGNORECASE)
_IDENTIFIER = re.compile(r"[rbuf]*([\"'])[\w.-]*\1", re.IGNORECASE)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of comments and strings; a string of one word names something."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        yield 1, re.sub(r"`[^`\n]*`", lambda code: " " * len(code.group()), text)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type == tokenize.STRING and not _IDENTIFIER.fullmatch(token.string):
            yield (
                token.start[0],
                re.sub(r"\{[^{}\n]*\}|``?[^`\n]+`?`", "", token.string),
            )


def unplain(path: Path) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line + before.count(chr(10))}: {word.group()}: write "
        f"{UNPLAIN[word.group().lower()]}"
        for line, text in prose(path)
        for word in _WORD.finditer(
            RIGHT.sub(lambda right: " " * len(right.group()), text)
        )
        for before in [text[: word.start()]]
    ]


def files() -> list[Path]:
    code = [
        path for part in ("ggext", "converters") for path in (ROOT / part).rglob("*.py")
    ]
    names = {path.relative_to(ROOT).as_posix(): path for path in code}
    pages = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    pages = [page for page in pages if page.name not in GENERATED]
    return pages + [path for name, path in names.items() if name not in DATA]


def test_prose_is_in_plain_words() -> None:
    wrong = [line for path in sorted(files()) for line in unplain(path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    ["x = 1  # tokens behind a cut", 'raise E("nobody knows")', 'f"{told} was told"'],
)
def test_an_unplain_word_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "a.py").write_text(line + "\n")
    monkeypatch.setitem(unplain.__globals__, "ROOT", tmp_path)
    assert len(unplain(tmp_path / "a.py")) == 1


@pytest.mark.parametrize(
    "line", ["told = beside(1)", '"behind"', "# left behind", 'f"{told}"']
)
def test_names_and_idioms_are_let_through(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.py").write_text(line + "\n")
    assert not list(
        _WORD.finditer(RIGHT.sub("", " ".join(t for _, t in prose(tmp_path / "a.py"))))
    )


#: What was done with a value does not say what it is: matches, expected, question, scores.
PARTICIPLES = {"asked", "begun", "found", "said", "told", "wanted"}
#: Names that users have: module and name → who reads it.
PUBLIC = {
    ("ggext/proof/report.py", "wanted"): "`PairRow.wanted`, a key of `verify --json`"
}


def bound_names(tree: ast.AST) -> Iterator[str]:
    """What the module gives a name to: functions, classes, parameters, variables, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.alias(asname=str(name)):
                yield name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
            case ast.MatchMapping(rest=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name


def participles(text: str) -> set[str]:
    return {
        name
        for name in bound_names(ast.parse(text))
        if name.strip("_").lower() in PARTICIPLES
    }


def test_a_name_is_what_the_value_is() -> None:
    names = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder in ("ggext", "converters")
        for path in (ROOT / folder).rglob("*.py")
        for name in participles(path.read_text("utf-8"))
    }
    assert names == set(PUBLIC)


@pytest.mark.parametrize(
    "code",
    [
        "_found = 1",
        "self.found = 1",
        "def found(): pass",
        "def f(*, found=1): pass",
        "class Found: pass",
        "class A:\n    found: int",
        "lambda found: 1",
        "[1 for found in x]",
        "if (found := x): pass",
        "match x:\n    case [int(found), *_]: pass",
        "with x as found: pass",
        "import x as found",
    ],
)
def test_a_participle_is_seen(code: str) -> None:
    assert len(participles(code)) == 1


def test_names_of_others_are_let_through() -> None:
    assert not participles("x = a.found + told(wanted=1) + len('found')")
