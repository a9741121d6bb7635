"""The command line as a whole: what a newcomer meets first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ggext.cli import main

#: Every command of the program: a new one is asked to explain itself too.
COMMANDS = main.list_commands(click.Context(main))


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_help_imports_nothing_heavy() -> None:
    """``ggext --help`` must start at once, so neither NumPy nor a command's module is imported."""
    code = (
        "import sys; from ggext.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'gguf', 'torch', 'llama_cpp', 'jinja2', 'rich', 'transformers', "
        "'ggext.convert'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {name}")
    overview = CliRunner().invoke(main, ["--help"]).output
    assert f"\n  {name} " in overview


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chatt"], "no such command 'chatt'; did you mean ggext chat?; see"),
        (["run", "x.gguf"], "no such command 'run'; did you mean ggext chat?"),
        (["bake"], "no such command 'bake'; did you mean ggext convert?"),
        (["qqq"], "no such command 'qqq'; see"),
        (["--foo"], "no such option --foo; see"),
        (["convert", "demo", "--outtype", "q8_0"], "--outtype; did you mean --type?"),
        (
            ["convert", "demo", "--outfile", "x"],
            "did you mean the second argument, OUT?",
        ),
        (["convert", "demo", "--tensor-typ", "x"], "did you mean --tensor-type?"),
        (
            ["convert", "demo", "--yarn-orig-ctx", "4"],
            "did you mean --original-context?",
        ),
        (["convert", "demo", "--zzz"], "no such option --zzz; see"),
        (
            ["convert", "demo", "--yarn"],
            "Option '--yarn' requires an argument; see main convert",
        ),
        (["plan", "x.gguf", "--contxt", "1"], "did you mean --context?"),
    ],
)
def test_what_does_not_exist_is_one_line_with_what_was_meant(
    arguments: list[str], message: str
) -> None:
    """newcomer.md, C. What is suggested are the program's own names."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("ggext: ")
    assert result.stderr.count("\n") == 1


def test_ggext_alone_says_what_it_does_and_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0
    for words in ("ggext convert", "ggext verify", "ggext chat", "next: ggext demo"):
        assert words in result.output
    (tmp_path / "own.gguf").touch()
    assert "next: ggext show own.gguf" in CliRunner().invoke(main, []).output
    assert (
        CliRunner().invoke(main, ["help"]).output
        == CliRunner().invoke(main, ["--help"]).output
    )
    version = CliRunner().invoke(main, ["-V"]).output
    assert version.startswith("ggext 0.")


def test_a_model_is_named_as_for_llama_cpp(tmp_path: Path) -> None:
    out = str(tmp_path / "x.gguf")
    assert CliRunner().invoke(main, ["convert", "demo", out]).exit_code == 0
    for command in ("plan", "inspect", "verify"):
        more = ["--level", "table"] if command == "verify" else []
        by_option = CliRunner().invoke(main, [command, "-m", out, *more])
        assert by_option.exit_code == 0, by_option.output
        by_argument = CliRunner().invoke(main, [command, out, *more])
        assert by_option.stdout.splitlines()[0] == by_argument.stdout.splitlines()[0]
        both = CliRunner().invoke(main, [command, out, "-m", out])
        assert "FILE and -m FILE name two models; give one" in both.stderr
        neither = CliRunner().invoke(main, [command])
        assert (neither.exit_code, neither.stderr[:32]) == (
            2,
            "ggext: Missing argument 'FILE'; ",
        )


def test_convert_explains_itself_in_groups_with_examples() -> None:
    output = CliRunner().invoke(main, ["convert", "--help"]).output
    titles = ["\nScaling (", "\nOutput:", "\nModel:", "\nFine points", "\nExamples:"]
    places = [output.index(title) for title in titles]
    assert places == sorted(places)
    assert output.count("\n  ggext convert ") == 2


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("llama_cpp", ["chat", "{gguf}", "-p", "x"], "run"),
        ("llama_cpp", ["convert", "demo", "{out}", "--type", "Q4_K_M"], "run"),
        ("huggingface_hub", ["convert", "Owner/Name", "{out}"], "hub"),
        ("llama_cpp", ["demo", "--questions", "5"], "run"),
        ("transformers", ["verify", "{gguf}", "--reference", "demo"], "reference"),
        ("matplotlib", ["inspect", "{gguf}", "--plot", "{out}.png"], "plot"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_remedy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    arguments: list[str],
    extra: str,
) -> None:
    gguf, out = tmp_path / "demo.gguf", tmp_path / "out"
    assert CliRunner().invoke(main, ["convert", "demo", str(gguf)]).exit_code == 0
    for name in [m for m in sys.modules if m == package or m.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("ggext.runtime.llama._module", None)
    result = CliRunner().invoke(main, [a.format(gguf=gguf, out=out) for a in arguments])
    assert result.exit_code == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ggext: ")
    assert f'pip install "ggext[{extra}]"' in last
    assert "Traceback" not in result.output
    assert not out.exists()


def test_level_one_needs_no_extra(tmp_path: Path) -> None:
    """convert, inspect and verify without torch, transformers, llama.cpp, jinja2 and matplotlib."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'llama_cpp', 'jinja2', 'matplotlib', "
        "'prompt_toolkit'):\n"
        "    sys.modules[name] = None\n"
        "from ggext.cli import main\n"
        f"out = {str(tmp_path / 'out.gguf')!r}\n"
        "bake = ['convert', 'demo', out, '--yarn', '4', '--type', 'q8_0']\n"
        "for arguments in (bake, ['inspect', out], ['verify', out]):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert not end.code, (arguments, end.code)\n"
    )
    assert "tokens: exact " in python(code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["convert", "demo", "{out}", "--yarn", "1e30"],
            "a factor of 1e+30 makes a context of 2.56e+32 tokens",
        ),
        (
            ["verify", "{gguf}", "--tolerance", "-1"],
            "--tolerance -1, but a KL divergence is 0 or more",
        ),
        (["verify", "{gguf}", "--reference", "{gguf}"], "is a file, not a checkpoint"),
        (
            ["verify", "{folder}"],
            "is a checkpoint; ggext convert {folder} makes a .gguf file of it",
        ),
        (
            ["plan", "{folder}"],
            "is a checkpoint; ggext convert {folder} makes a .gguf file of it",
        ),
        (["undo", "{out}"], "{out} does not exist; check the path"),
    ],
)
def test_a_wrong_input_is_one_line_that_names_it(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    names = {
        "gguf": tmp_path / "model.gguf",
        "out": tmp_path / "out.gguf",
        "folder": tmp_path / "checkpoint",
    }
    assert (
        CliRunner().invoke(main, ["convert", "demo", str(names["gguf"])]).exit_code == 0
    )
    names["folder"].mkdir()
    (names["folder"] / "config.json").write_text("{}")
    result = CliRunner().invoke(
        main, [argument.format(**names) for argument in arguments]
    )
    assert result.exit_code in (1, 2)
    assert message.format(**names) in result.stderr
    assert not names["out"].exists()
