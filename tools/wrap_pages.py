"""Wraps the prose of the pages at 100 columns.

    python tools/wrap_pages.py [PAGE ...]   all pages without PAGE; prints those that it changed

Tables, code and headings stay as they are, and so do paragraphs without a line that is too long. A
paragraph with a sentence a line keeps that form. The tools that make pages wrap them as well.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 100
#: Never broken: code, and where a link leads.
_WHOLE = re.compile(r"`+[^`]+`+|\]\([^)]*\)")
#: At the start of a line these would make a list, a heading, a quotation or a table.
_MARK = re.compile(r"(?:[-+*>|]|#+|\d+[.)])$")
_ITEM = re.compile(r"(\s*(?:[-+*]|\d+[.)])\s+)\S")
_SENTENCE_END = re.compile(r"[.:;!?][)*_`\"]*$")
_SPACE = "\0"


def pages() -> list[Path]:
    folders = (ROOT, ROOT / "docs", ROOT / "ggext" / "data")
    return sorted(page for folder in folders for page in folder.glob("*.md"))


def wrapped(text: str) -> str:
    """A page's text with its prose wrapped."""
    lines: list[str] = []
    for block, is_prose in _blocks(text):
        too_long = any(len(line) > COLUMNS for line in block)
        lines += _wrapped_paragraph(block) if is_prose and too_long else block
    return "\n".join(lines) + "\n"


def _blocks(text: str) -> Iterator[tuple[list[str], bool]]:
    """Lines that belong together, and whether they are prose. An item of a list is a block."""
    paragraph: list[str] = []
    fence = ""
    for line in text.splitlines():
        mark = line.strip()[:3]
        starts_fence = mark in ("```", "~~~")
        if fence or starts_fence or not _is_prose(line, paragraph):
            yield from [(paragraph, True)] if paragraph else []
            yield [line], False
            paragraph = []
            if starts_fence:
                fence = "" if fence == mark else fence or mark
        elif _ITEM.match(line) and paragraph:
            yield paragraph, True
            paragraph = [line]
        else:
            paragraph.append(line)
    yield from [(paragraph, True)] if paragraph else []


def _is_prose(line: str, before: list[str]) -> bool:
    """``before``: the lines of the paragraph so far; indented lines go on with one."""
    start = line.lstrip()
    if not start or start.startswith(("|", "#", "<", ">", "[!")):
        return False
    return bool(before) or bool(_ITEM.match(line)) or not line.startswith("    ")


def _wrapped_paragraph(lines: list[str]) -> list[str]:
    item = _ITEM.match(lines[0])
    indent = re.match(r"\s*", lines[0])
    assert indent is not None
    first = item[1] if item else indent[0]
    rest = " " * len(first)
    texts = [lines[0][len(first) :], *(line.strip() for line in lines[1:])]
    if not all(_SENTENCE_END.search(text) for text in texts[:-1]):
        texts = [" ".join(texts)]
    result: list[str] = []
    for text in texts:
        start = rest if result else first
        result += _filled(text, start, rest)
    return result


def _filled(text: str, first: str, rest: str) -> list[str]:
    protected = _WHOLE.sub(lambda part: part[0].replace(" ", _SPACE), text)
    lines: list[str] = []
    line = first
    is_empty = True
    for word in protected.split():
        fits = len(line) + len(word) + (not is_empty) <= COLUMNS
        if not is_empty and not fits and not _MARK.match(word):
            lines.append(line)
            line = rest
            is_empty = True
        line += word if is_empty else f" {word}"
        is_empty = False
    return [line.replace(_SPACE, " ") for line in [*lines, line]]


def main(chosen: list[Path]) -> None:
    for page in chosen:
        text = page.read_text("utf-8")
        new = wrapped(text)
        if new != text:
            page.write_text(new, "utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main([Path(name).resolve() for name in sys.argv[1:]] or pages())
