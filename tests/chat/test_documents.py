"""Documents: what is read of each kind, and what is said of what is no text."""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ggext.chat import documents
from ggext.chat.documents import document, read_document
from ggext.errors import MissingExtraError, UsageError

TEXT = "Call me Ishmael. Some years ago – never mind how long.\n"


def pdf(text: str = "Call me Ishmael.") -> bytes:
    """A page with one line."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    font = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%b\nendstream" % (len(content), content),
        font,
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj%b endobj\n" % (number, one)
    start = len(out)
    out += b"xref\n0 6\n0000000000 65535 f \n"
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return out + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % start


def zipped(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in files.items():
            file.writestr(name, text)
    return data.getvalue()


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
DOCX = {
    "[Content_Types].xml": (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Override '
        'PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        'wordprocessingml.document.main+xml"/></Types>'
    ),
    "_rels/.rels": (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/'
        'relationships/officeDocument" Target="word/document.xml"/></Relationships>'
    ),
    "word/document.xml": (
        f"<w:document {W}><w:body><w:p><w:r><w:t>Call me Ishmael.</w:t></w:r></w:p><w:tbl><w:tr>"
        "<w:tc><w:p><w:r><w:t>whale</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>white</w:t></w:r>"
        "</w:p></w:tc></w:tr></w:tbl></w:body></w:document>"
    ),
}
EPUB = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OPS/book.opf"/></rootfiles></container>'
    ),
    "OPS/book.opf": (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="b" href="b.xhtml"/>'
        '<item id="a" href="text/a%20b.xhtml"/></manifest><spine><itemref idref="a"/>'
        '<itemref idref="b"/></spine></package>'
    ),
    "OPS/text/a b.xhtml": "<html><body><h1>Loomings</h1><p>Call me Ishmael.</p></body></html>",
    "OPS/b.xhtml": "<html><head><style>p {}</style></head><body><p>The end.</p></body></html>",
}
HTML = (
    b"<!DOCTYPE html><html><head><title>x</title><script>evil()</script></head><body><h1>Moby</h1>"
    b"<p>Call me <b>Ishmael</b>.</p><ul><li>one</li></ul></body></html>"
)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (TEXT.encode(), TEXT),
        (codecs.BOM_UTF8 + TEXT.encode(), TEXT),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), TEXT),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), TEXT),
        (codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), TEXT),
    ],
)
def test_text_in_every_unicode_encoding_with_its_mark(data: bytes, text: str) -> None:
    assert document(data, "book.txt").text == text


@pytest.mark.parametrize(
    ("name", "data", "made_from", "words"),
    [
        ("a.pdf", pdf(), "PDF, 1 page", ["Call me Ishmael."]),
        ("a.docx", zipped(DOCX), "docx", ["Call me Ishmael.", "whale", "white"]),
        (
            "a.epub",
            zipped(EPUB),
            "EPUB, 2 parts",
            ["# Loomings", "Call me Ishmael.", "The end."],
        ),
        ("a.html", HTML, "HTML", ["# Moby", "Call me **Ishmael**.", "* one"]),
        ("page", HTML, "HTML", ["# Moby"]),
    ],
)
def test_documents_of_the_extra_become_text(
    tmp_path: Path, name: str, data: bytes, made_from: str, words: list[str]
) -> None:
    for package in ("pypdf", "mammoth", "markdownify"):
        pytest.importorskip(package)
    (tmp_path / name).write_bytes(data)
    read = read_document(tmp_path / name)
    assert read.made_from == made_from
    places = [read.text.find(word) for word in words]
    assert min(places) >= 0
    assert places == sorted(places)  # in the order of the document
    assert "evil" not in read.text
    assert "p {}" not in read.text


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "a b.gz",
            gzip.compress(b"x", mtime=0),
            "is a gzip archive, not a text; .*: gunzip -k 'a b.gz'",
        ),
        ("x.png", b"\x89PNG\r\n", r"is a PNG image, not a text; .*: tesseract x.png x"),
        ("x.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an old Office file"),
        ("x.rtf", b"{\\rtf1 hi}", "is an RTF file, .*: pandoc -t plain -o x.txt x.rtf"),
        ("x.xlsx", zipped({"xl/workbook.xml": ""}), "is an Excel workbook"),
        (
            "x.pptx",
            zipped({"ppt/presentation.xml": ""}),
            "is a PowerPoint presentation",
        ),
        ("x.zip", zipped({"a": ""}), "is a zip archive, not a text; .*: unzip x.zip"),
        ("m.gguf", b"GGUF\3", "is a GGUF model, not a text"),
        (
            "x.txt",
            "größer".encode("latin-1"),
            "is not UTF-8 text .*iconv -f LATIN1 -t UTF-8 x.txt > x.utf8.txt",
        ),
        (
            "x.txt",
            TEXT.encode("utf-16-le"),
            "is text in UTF-16LE, .*: iconv -f UTF-16LE",
        ),
        ("x.txt", TEXT.encode("utf-16-be"), "is text in UTF-16BE"),
        (
            "x.bin",
            b"abc\0def" * 9,
            "has NUL bytes .the first is byte 3.: it is a binary file",
        ),
        ("x.txt", codecs.BOM_UTF16_LE + b"a", "begins as UTF-16 but is broken at byte"),
        ("x.pdf", b"%PDF-1.4 nothing", "looks like a PDF file but cannot be read"),
        ("x.docx", zipped({"word/document.xml": "<"}), "looks like a Word document"),
        (
            "x.epub",
            zipped({"META-INF/container.xml": "<a/>"}),
            "looks like an EPUB book",
        ),
        ("x.pdf", pdf(""), "has no text in it, as scanned pages have none"),
    ],
)
def test_what_is_no_text_says_what_it_is_and_how_to_get_text(
    name: str, data: bytes, said: str
) -> None:
    for package in ("pypdf", "mammoth", "markdownify"):
        pytest.importorskip(package)
    with pytest.raises(UsageError, match=f"^{name} .*{said}|^{name} {said}"):
        document(data, name)


@pytest.mark.parametrize(
    ("data", "package", "command"),
    [
        (pdf(), "pypdf", "pdftotext x x.txt"),
        (zipped(DOCX), "mammoth", "pandoc -t plain -o x.txt x"),
        (zipped(EPUB), "markdownify", "pandoc -t plain -o x.txt x"),
    ],
)
def test_without_the_extra_the_command_that_makes_text_is_named(
    monkeypatch: pytest.MonkeyPatch, data: bytes, package: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as error:
        document(data, "x")
    assert f'pip install "ggext[documents]"; this makes text of it: {command}' in str(
        error.value
    )


def test_without_the_extra_html_is_read_with_its_tags(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "markdownify", None)
    read = document(HTML, "a.html")
    assert read.text == HTML.decode()
    assert read.made_from.startswith("HTML with its tags")


def test_what_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MAX_UNPACKED", 1000)
    with pytest.raises(UsageError, match=r"unpacks to 1,0\d\d bytes, more than 1,000"):
        document(zipped({"word/document.xml": "x" * 1050}), "bomb.docx")


def test_entities_that_grow_are_refused() -> None:
    pytest.importorskip("markdownify")
    bomb = {
        **EPUB,
        "META-INF/container.xml": '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    }
    with pytest.raises(UsageError, match="declares XML entities"):
        document(zipped(bomb), "bomb.epub")


@pytest.mark.parametrize("kind", ["pdf", "docx", "epub", "html"])
def test_damaged_documents_are_text_or_one_line(kind: str) -> None:
    for package in ("pypdf", "mammoth", "markdownify"):
        pytest.importorskip(package)
    whole: dict[str, Any] = {
        "pdf": pdf(),
        "docx": zipped(DOCX),
        "epub": zipped(EPUB),
        "html": HTML,
    }
    data = whole[kind]
    for cut in range(8, len(data), max(len(data) // 12, 1)):
        for broken in (data[:cut], data[:cut] + b"\xff" + data[cut + 1 :]):
            try:
                document(broken, f"x.{kind}")
            except UsageError as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017 - or it is read
