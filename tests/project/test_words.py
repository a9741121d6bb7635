"""Plain English in comments, docstrings, messages and pages: the words that readers trip over."""

from __future__ import annotations

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
