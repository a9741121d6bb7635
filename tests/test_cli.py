"""The command line as a whole: what a newcomer meets first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggext.cli import main

COMMANDS = ("convert", "verify", "inspect", "chat", "demo")


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


def test_unknown_command() -> None:
    result = CliRunner().invoke(main, ["bake"])
    assert result.exit_code == 2
    assert "No such command 'bake'; see" in result.stderr


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, arguments: list[str], extra: str
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
            "--tolerance is -1; a KL divergence is 0 or more",
        ),
        (["verify", "{gguf}", "--reference", "{gguf}"], "is a file, not a checkpoint"),
        (
            ["verify", "{folder}"],
            "is a checkpoint; ggext convert {folder} makes a .gguf file of it",
        ),
        (["plan", "{folder}"], "is a checkpoint; ggext convert {folder} makes a .gguf file of it"),
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
    assert CliRunner().invoke(main, ["convert", "demo", str(names["gguf"])]).exit_code == 0
    names["folder"].mkdir()
    (names["folder"] / "config.json").write_text("{}")
    result = CliRunner().invoke(main, [argument.format(**names) for argument in arguments])
    assert result.exit_code in (1, 2)
    assert message.format(**names) in result.stderr
    assert not names["out"].exists()
