"""Library code names parameters; the flags of the command line come in when a person reads it."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

from ggext.screen import flags
from ggext.screen.flags import in_flags

#: The command line itself, and the chat, which is one.
OF_THE_COMMAND_LINE = ("cli/", "screen/", "chat/", "__main__.py", "_pyinstaller/")
#: Written for other programs: pip, llama.cpp's tools, our own children.
OTHER_PROGRAMS = ("doctor/", "runtime/child.py", "runtime/kernels.py", "runtime/cells.py",
                  "runtime/ggml.py", "convert/llama_cpp_converter.py", "lm_eval.py", "emit.py")  # fmt: skip
#: Still to be changed; the list only gets shorter.
TO_COME = ("tune/", "search/", "export/")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
#: Whole commands, which are commands in a program's message too.
_COMMAND = re.compile(r"(?:# )?(?:ggext|llama-\S+|mlx_lm\.convert|pip|soffice)\b.*")


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of string literals, without docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    pieces = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            constants = [part for part in node.values if isinstance(part, ast.Constant)]
            pieces |= {id(part) for part in constants}
            yield node.lineno, "{}".join(str(part.value) for part in constants)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings | pieces:
            yield node.lineno, node.value if isinstance(node.value, str) else ""


def test_library_errors_name_parameters() -> None:
    wrong = []
    for path in sorted((ROOT / "ggext").rglob("*.py")):
        name = path.relative_to(ROOT / "ggext").as_posix()
        if name.startswith((*OF_THE_COMMAND_LINE, *OTHER_PROGRAMS, *TO_COME)):
            continue
        for line, text in messages(path):
            wrong += [
                f"{name}:{line}: {flag}"
                for flag in _FLAG.findall(_COMMAND.sub("", text))
            ]
    assert not wrong, "\n".join(wrong)


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(flags).failed == 0


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("use force=True to replace it", "use --force to replace it"),
        ("when_full='stop'", "--when-full stop"),
        (
            "original_context (8192 for Llama 3.1)",
            "--original-context (8192 for Llama 3.1)",
        ),
        ("as rope=RopeScaling('none') makes it", "as --rope none makes it"),
        ("RopeScaling('linear', factor=F)", "--linear F"),
        ("tensor_types a=f9: the type f9", "--tensor-type a=f9: the type f9"),
        (
            "/models/in_place/original_context.gguf",
            "/models/in_place/original_context.gguf",
        ),
        (
            "rope.scaling.original_context_length",
            "rope.scaling.original_context_length",
        ),
        ("the attention_factor is 0", "the attention_factor is 0"),
    ],
)
def test_parameters_become_flags(said: str, shown: str) -> None:
    assert in_flags(said) == shown
