"""Documents as text: UTF-8, UTF-16 with its mark, and with the extra "documents" PDF, docx, HTML
and EPUB.

What is no text is named, with the command that makes text of it. A document comes from a stranger:
what it unpacks to is bounded before it is unpacked, and whatever a parser raises is one line.
"""

from __future__ import annotations

import codecs
import io
import logging
import posixpath
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from ggext.errors import GgextError, MissingExtraError, UsageError, first_line
from ggext.gguf.plain_files import read_bounded

MAX_DOCUMENT = 512 << 20  # bytes of a file: books with pictures are smaller
_MAX_UNPACKED = 512 << 20  # bytes of all files in a docx or EPUB
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HTML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html[\s>])",
    re.IGNORECASE | re.DOTALL,
)
_HTML_NAMES = (".html", ".htm", ".xhtml")
_CONTAINER = "META-INF/container.xml"

#: What a file begins with that is no text, what it is called, the command that makes text of it.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF-", "a PDF file", "pdftotext {name} {text}"),
    (b"{\\rtf", "an RTF file", "pandoc -t plain -o {text} {name}"),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an old Office file",
        "soffice --convert-to txt:Text {name}",
    ),
    (b"\x1f\x8b", "a gzip archive", "gunzip -k {name}"),
    (b"BZh", "a bzip2 archive", "bunzip2 -k {name}"),
    (b"\xfd7zXZ\0", "an xz archive", "unxz -k {name}"),
    (b"(\xb5/\xfd", "a zstd archive", "unzstd {name}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {name}"),
    (b"Rar!", "a RAR archive", "unrar x {name}"),
    (b"SQLite format 3\0", "an SQLite database", "sqlite3 {name} .dump > {text}"),
    (b"GGUF", "a GGUF model", ""),
    (b"\x89PNG", "a PNG image", "tesseract {name} {stem}"),
    (b"\xff\xd8\xff", "a JPEG image", "tesseract {name} {stem}"),
    (b"GIF8", "a GIF image", "tesseract {name} {stem}"),
    (b"\x7fELF", "a program", ""),
    (b"ID3", "an audio file", ""),
    (b"OggS", "an audio file", ""),
)
#: A name inside a zip archive that says what it is, what that is called, and the command.
_ARCHIVES = (
    ("word/document.xml", "a Word document (docx)", "pandoc -t plain -o {text} {name}"),
    (_CONTAINER, "an EPUB book", "pandoc -t plain -o {text} {name}"),
    ("xl/workbook.xml", "an Excel workbook (xlsx)", "soffice --convert-to csv {name}"),
    (
        "ppt/presentation.xml",
        "a PowerPoint presentation (pptx)",
        "soffice --convert-to pdf {name}",
    ),
    ("content.xml", "an OpenDocument file", "pandoc -t plain -o {text} {name}"),
)


@dataclass(frozen=True)
class Document:
    """A document's text, and what it was made from."""

    # as the user named it
    name: str
    text: str
    # such as "PDF, 12 pages"; empty for plain text
    made_from: str = ""


def read_document(path: Path) -> Document:
    """The text of a file. Raises UsageError where there is none, or it cannot be read, and
    MissingExtraError."""
    try:
        with path.open("rb") as file:
            data = read_bounded(file, MAX_DOCUMENT)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return document(data, str(path))


def document(data: bytes, name: str) -> Document:
    """The text of a file's bytes; ``name`` is for messages, and its ending may tell HTML. Raises
    UsageError, MissingExtraError."""
    if data.startswith(b"%PDF-"):
        return _read(_from_pdf, data, name, "a PDF file", "pdftotext {name} {text}")
    if data.startswith(b"PK\x03\x04"):
        return _archive(data, name)
    if _is_html(data, name):
        return _page(data, name)
    return Document(name, _plain(data, name))


def _archive(data: bytes, name: str) -> Document:
    what = "a zip archive"
    command = "unzip {name}"
    inside = ""
    with _one_line(name, what):
        archive = zipfile.ZipFile(io.BytesIO(data))
        names = set(archive.namelist())
        size = sum(entry.file_size for entry in archive.infolist())
    for inner, called, makes_text in _ARCHIVES:
        if inner in names:
            what = called
            command = makes_text
            inside = inner
            break
    readers = {"word/document.xml": _from_docx, _CONTAINER: _from_epub}
    if inside not in readers:
        raise _no_text(name, what, command)
    if size > _MAX_UNPACKED:
        raise UsageError(
            f"{name} unpacks to {size:,} bytes, more than {_MAX_UNPACKED:,}"
        )
    return _read(readers[inside], data, name, what, command)


def _read(
    reader: Callable[[bytes, str], Document],
    data: bytes,
    name: str,
    what: str,
    command: str,
) -> Document:
    """What `reader` makes of the bytes; without the extra, the command that makes text is named
    too."""
    try:
        with _one_line(name, what):
            made = reader(data, name)
    except MissingExtraError as error:
        raise MissingExtraError(
            error.package,
            error.extra,
            f"{name} is {what}: reading it",
            _advice(name, command),
        ) from None
    if not made.text.strip():
        raise UsageError(
            f"{name} ({made.made_from}) has no text in it, as scanned pages have none: "
            f"read them first, for example with ocrmypdf"
        )
    return made


def _from_pdf(data: bytes, name: str) -> Document:
    try:
        import pypdf
    except ModuleNotFoundError as error:
        raise MissingExtraError("pypdf", "documents", name) from error
    # Else it writes to the standard error.
    logging.getLogger("pypdf").addHandler(logging.NullHandler())
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise UsageError(
            f"{name} is a PDF file with a password: take the password off first"
        )
    pages = [page.extract_text() for page in reader.pages]
    return Document(name, "\n\n".join(pages), f"PDF, {_counted(len(pages), 'page')}")


def _from_docx(data: bytes, name: str) -> Document:
    try:
        import mammoth
    except ModuleNotFoundError as error:
        raise MissingExtraError("mammoth", "documents", name) from error
    # Pictures become nothing: as data they would be megabytes of text.
    pictures = mammoth.images.img_element(lambda _: {"src": ""})
    html = mammoth.convert_to_html(io.BytesIO(data), convert_image=pictures).value
    return Document(name, _markdown(html, name), "docx")


def _from_epub(data: bytes, name: str) -> Document:
    """The chapters in the order of the book's spine (EPUB 3, 3.4.12)."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        package = _xml(archive, _CONTAINER).find(".//{*}rootfile")
        path = "" if package is None else package.get("full-path", "")
        tree = _xml(archive, path)
        files = {
            item.get("id"): item.get("href", "") for item in tree.iterfind(".//{*}item")
        }
        spine = [
            files.get(entry.get("idref"), "")
            for entry in tree.iterfind(".//{*}itemref")
        ]
        folder = posixpath.dirname(path)
        names = [
            posixpath.normpath(posixpath.join(folder, unquote(href)))
            for href in spine
            if href
        ]
        chapters = [_markdown(archive.read(chapter), name) for chapter in names]
    text = "\n\n".join(filter(None, chapters))
    return Document(name, text, f"EPUB, {_counted(len(chapters), 'part')}")


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    data = archive.read(name)
    if (
        b"<!ENTITY" in data
    ):  # entities can be made to grow without end, and no book needs them here
        raise UsageError(f"{name} declares XML entities")
    return ElementTree.fromstring(data)


def _page(data: bytes, name: str) -> Document:
    try:
        return Document(name, _markdown(data, name), "HTML")
    except MissingExtraError as error:  # tags are text too
        return Document(
            name,
            _plain(data, name),
            f'HTML with its tags; pip install "ggext[{error.extra}]" reads its text',
        )


def _markdown(html: str | bytes, name: str) -> str:
    try:
        import markdownify
        from bs4 import BeautifulSoup
    except ModuleNotFoundError as error:
        raise MissingExtraError("markdownify", "documents", name) from error
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["script", "style", "head", "noscript", "template", "svg"]):
        element.decompose()
    converter = markdownify.MarkdownConverter(
        heading_style="ATX",
        strip=["a", "img"],
        escape_asterisks=False,
        escape_underscores=False,
    )
    return re.sub(r"\n{3,}", "\n\n", str(converter.convert_soup(soup))).strip()


def _plain(data: bytes, name: str) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{name} begins as {encoding.upper()} but is broken at byte {error.start}"
                ) from error
    for signature, what, command in _SIGNATURES:
        if data.startswith(signature):
            raise _no_text(name, what, command)
    if b"\0" in data:
        raise _no_nul(data, name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        command = "iconv -f LATIN1 -t UTF-8 {name} > {text}"
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start}); if it is Latin-1: "
            f"{_filled(command, name)}"
        ) from error


def _no_nul(data: bytes, name: str) -> UsageError:
    """Text in UTF-16 without its mark has a NUL in every other byte."""
    head = data[:4096]
    for encoding, part in (("UTF-16LE", head[1::2]), ("UTF-16BE", head[::2])):
        if part.count(0) * 2 > len(part) > 1:
            return _no_text(
                name,
                f"text in {encoding}",
                f"iconv -f {encoding} -t UTF-8 {{name}} > {{text}}",
            )
    return UsageError(
        f"{name} has NUL bytes (the first is byte {data.index(0)}): it is a binary file, not a text"
    )


def _is_html(data: bytes, name: str) -> bool:
    return (
        name.lower().endswith(_HTML_NAMES)
        or _HTML.match(data[:2048].removeprefix(codecs.BOM_UTF8)) is not None
    )


def _no_text(name: str, what: str, command: str) -> UsageError:
    return UsageError(f"{name} is {what}, not a text{_advice(name, command)}")


def _advice(name: str, command: str) -> str:
    return f"; this makes text of it: {_filled(command, name)}" if command else ""


def _filled(command: str, name: str) -> str:
    path = Path(name)
    suffix = ".utf8.txt" if path.suffix == ".txt" else ".txt"
    text = path.with_suffix(suffix)  # never itself
    names = {"name": path, "text": text, "stem": path.with_suffix("")}
    return command.format_map(
        {key: shlex.quote(str(value)) for key, value in names.items()}
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@contextmanager
def _one_line(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except GgextError:
        raise
    # Parsers of strangers' files raise whatever Python raises.
    except Exception as error:
        raise UsageError(
            f"{name} looks like {what} but cannot be read: {first_line(error):.200}"
        ) from error
