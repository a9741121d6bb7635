"""The pages of docs/: what is generated is current, the index is whole, no link leads nowhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import api_page
import click
import commands_page
import pytest
import wrap_pages
from click.testing import CliRunner
from ggext.converters import known_families
from paths import ROOT

import ggext
from ggext.cli import main

DOCS = ROOT / "docs"
#: Pages that a person reads from the beginning; the commands in them are tried below.
GUIDES = (ROOT / "README.md", DOCS / "tutorial.md")
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
_FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    return [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md"))]


def test_the_commands_page_is_what_the_program_says() -> None:
    assert (DOCS / "commands.md").read_text("utf-8") == commands_page.page(), (
        "docs/commands.md is stale: python tools/commands_page.py > docs/commands.md"
    )


def test_the_interface_page_is_what_the_docstrings_say() -> None:
    assert (DOCS / "api.md").read_text("utf-8") == api_page.page(), (
        "docs/api.md is stale: python tools/api_page.py > docs/api.md"
    )


def test_the_interface_page_has_every_public_name() -> None:
    public = {f"ggext.{name}" for name in ggext.__all__ if name != "__version__"}
    assert not public - api_page.names()


def test_the_index_lists_every_page_once() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[[^]]+\]\(([\w-]+\.md)\)", index, re.MULTILINE)
    assert sorted(listed) == sorted(
        page.name for page in DOCS.glob("*.md") if page.stem != "README"
    )


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    for target, anchor in _LINK.findall(_FENCED.sub("", page.read_text("utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in _anchors(place), f"{page.name} links to {target}#{anchor}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(
        r"^#+ (.+)$", _FENCED.sub("", page.read_text("utf-8")), re.MULTILINE
    )
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def commands() -> list[str]:
    """The ggext command lines of the guides, without pipes, redirections and comments."""
    text = "\n".join(guide.read_text("utf-8") for guide in GUIDES)
    lines = re.findall(r"^ *\$ (?:.*\| *)?(ggext .+)$", text, re.MULTILINE)
    return sorted({re.split(r" [>|#]", line)[0].strip() for line in lines})


def test_the_guides_show_commands() -> None:
    shown = {shlex.split(line)[1] for line in commands()}
    assert {"show", "convert", "verify", "eval", "chat", "demo", "plan"} <= shown


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_guides_exists_with_its_options(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = main.get_command(click.Context(main), name)
    assert command is not None, f"{line}: there is no such command"
    known = {option for parameter in command.params for option in parameter.opts}
    known |= {
        option for parameter in command.params for option in parameter.secondary_opts
    }
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            assert argument in known | {"--help"}, (
                f"{line}: there is no option {argument}"
            )
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def sentences(page: Path) -> list[str]:
    """Of prose, without tables, headings and blocks; an item of a list ends a sentence too."""
    text = _FENCED.sub("", page.read_text("utf-8"))
    lines = [
        x for x in text.splitlines() if not x.startswith(("|", "#", "<!--", "    "))
    ]
    prose = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", "\n".join(lines))
    parts = re.split(r"(?<=[.!?])\s+|\n\n+|\n(?=- )", prose)
    return [part for part in parts if part.strip()]


@pytest.mark.parametrize("page", wrap_pages.pages(), ids=lambda page: page.name)
def test_prose_has_at_most_100_columns(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text == wrap_pages.wrapped(text), "run python tools/wrap_pages.py"


@pytest.mark.parametrize(
    ("text", "wrapped"),
    [
        (f"{'word ' * 25}\n", f"{('word ' * 20).strip()}\n{('word ' * 5).strip()}\n"),
        (
            f"- {'word ' * 25}\n",
            f"- {('word ' * 19).strip()}\n  {('word ' * 6).strip()}\n",
        ),
        (f"| {'word ' * 25}|\n", f"| {'word ' * 25}|\n"),
        (f"```\n{'word ' * 25}x\n```\n", f"```\n{'word ' * 25}x\n```\n"),
        (f"    {'word ' * 25}x\n", f"    {'word ' * 25}x\n"),
        (f"{'a' * 95} `x y z` b\n", f"{'a' * 95}\n`x y z` b\n"),
        (f"{'a' * 99} - b\n", f"{'a' * 99} -\nb\n"),
    ],
    ids=["prose", "item", "table", "fence", "indented", "code", "mark"],
)
def test_pages_are_wrapped(text: str, wrapped: str) -> None:
    assert wrap_pages.wrapped(text) == wrapped


@pytest.mark.parametrize(
    "page", [*sorted(DOCS.glob("*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_the_pages_have_short_sentences(page: Path) -> None:
    """Half of the sentences of a page have at most 18 words."""
    lengths = sorted(len(sentence.split()) for sentence in sentences(page))
    assert lengths[len(lengths) // 2] <= 18, lengths


def test_the_changelog_begins_with_this_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## (\d+\.\d+\.\d+)", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == ggext.__version__


def test_the_readme_counts_the_families() -> None:
    readme = GUIDES[0].read_text("utf-8")
    assert f"- {len(known_families())} model types are converted" in readme


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the README's chat happens."""
    pytest.importorskip("llama_cpp")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["convert", "demo", "--yarn", "4"]).exit_code == 0
    return tmp_path


@pytest.mark.usefixtures("baked")
def test_the_readmes_second_python_example_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exec(GUIDES[0].read_text("utf-8").split("```python\n")[2].split("```")[0], {})
    assert capsys.readouterr().out == "Look for the map below."


def test_the_readmes_chat_answers(baked: Path) -> None:
    readme = GUIDES[0].read_text("utf-8")
    question, answer = re.findall(r"^> (Where .*)\n(.*)$", readme, re.MULTILINE)[0]
    text = CliRunner().invoke(main, ["demo", "--text", "900"])
    (baked / "story.txt").write_text(text.stdout, "utf-8")
    line = [
        "chat",
        "demo-yarn4.gguf",
        "-f",
        "story.txt",
        "-p",
        question,
        "--temperature",
        "0",
    ]
    assert CliRunner().invoke(main, line).stdout == answer + "\n"
