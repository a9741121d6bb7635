"""What the package promises as a whole: cheap to import, layered, complete without its extras."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata, resources
from pathlib import Path

import pytest
from paths import ROOT

from ggext.llama_cpp_facts import pin

CODE = ("ggext", "converters", "tests", "tools", "benchmarks", "examples")
EXTRAS = (
    "accelerate",
    "huggingface_hub",
    "jinja2",
    "llama_cpp",
    "llguidance",
    "lm_eval",
    "matplotlib",
    "peft",
    "prompt_toolkit",
    "rich",
    "torch",
    "transformers",
)

NEED_EXTRAS = {
    "__init__",
    "api",
    "chat",
    "lm_eval",
}  # chat templates are jinja2's; the others import extras on use

# The parts of ggext from the top down: an import goes to a lower row, or stays in its own part or
# row. A part that is not named here fails.
ROWS = (
    {"__main__", "_pyinstaller"},
    {"cli", "screen"},
    {
        *("verify", "inspect", "plan", "show", "demo", "doctor", "lm_eval", "search"),
        *("emit", "export", "tune"),
    },
    {"api", "chat", "convert", "proof", "quality"},
    {"converters", "checkpoint", "footprint", "gguf", "runtime"},
    {"rope"},
    {"native", "_native", "llama_cpp_facts"},
    {"arguments", "errors", "folders", "data", "_version", "__init__"},
)
# Stricter than the rows: these import nothing of ggext but themselves and what is named.
ONLY = {
    "rope": {"_version", "arguments", "errors", "native", "llama_cpp_facts"},
    "gguf": {"errors", "native", "_native", "rope"},
    "llama_cpp_facts": set(),
}
# The one module of gguf/ that knows of RoPE.
KNOWS_ROPE = "ggext/gguf/rope.py"
# Packages that only the named parts import.
KEPT_IN = {
    "llama_cpp": {"runtime"},
    "llguidance": {"runtime"},
    "lm_eval": {"lm_eval"},
    "torch": {
        "checkpoint",
        "proof",
        "tune",
    },  # pickles, the judge of verify --reference, training
    "transformers": {"proof", "tune"},
    "peft": {"tune"},
    "accelerate": {"tune"},
    "huggingface_hub": {"checkpoint"},
    "rich": {"screen"},
    "prompt_toolkit": {"screen"},
}


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package: its part (the first name after ggext) and its file."""
    for path in sorted((ROOT / "ggext").rglob("*.py")):
        yield path.relative_to(ROOT / "ggext").parts[0].removesuffix(".py"), path
    for path in sorted((ROOT / "converters").rglob("*.py")):
        yield "converters", path


def imported(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a file imports, at any depth.

    ``package``: the dotted name that a relative import starts from.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from ggext import native` names the part in the alias, not in the module.
            if name == "ggext":
                yield from (
                    (node.lineno, f"ggext.{alias.name}") for alias in node.names
                )
            else:
                yield node.lineno, name


def package_of(path: Path) -> str:
    inside = path.relative_to(ROOT)
    names = (
        inside.parent.parts
        if inside.parts[0] == "ggext"
        else ("ggext", *inside.parent.parts)
    )
    return ".".join(names)


def is_part(name: str) -> bool:
    """Whether ggext.NAME is a module and not an attribute such as __version__."""
    inside = ROOT / "ggext"
    return (
        name in ("converters", "_native")
        or (inside / name).is_dir()
        or (inside / f"{name}.py").is_file()
    )


def inner_imports() -> Iterator[tuple[str, str, str]]:
    """Part, imported part, and where, for every import of ggext inside ggext."""
    for part, path in sources():
        if part == "__init__":  # the lazy public names
            continue
        for line, name in imported(path, package_of(path)):
            if name.startswith("ggext.") and is_part(name.split(".")[1]):
                yield part, name.split(".")[1], f"{path.relative_to(ROOT)}:{line}"


def row_of(part: str) -> int:
    return next(i for i, row in enumerate(ROWS) if part in row)


def test_importing_ggext_is_cheap() -> None:
    heavy = (
        "numpy",
        "gguf",
        "torch",
        "llama_cpp",
        "transformers",
        "click",
        "rich",
        "jinja2",
    )
    code = f"import ggext, sys; print([m for m in {heavy!r} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize(
    "module", sorted({part for part, _ in sources()} - NEED_EXTRAS)
)
def test_without_extras_it_can_be_imported(module: str) -> None:
    run_python(
        f"import sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"  # None: importing it raises
        f"import ggext.{module}"
    )


def test_every_part_has_a_row() -> None:
    assert not sorted({part for part, _ in sources()} - set().union(*ROWS))


def test_imports_go_one_way() -> None:
    wrong = [
        f"{where}: {part} imports {target}"
        for part, target, where in inner_imports()
        if part != target and row_of(part) > row_of(target)
    ]
    assert not wrong, "\n".join(wrong)


def test_rope_and_gguf_stand_alone() -> None:
    wrong = [
        f"{where}: {part} imports {target}"
        for part, target, where in inner_imports()
        if (part in ONLY and target not in ONLY[part] | {part})
        or (part == "gguf" and target == "rope" and not where.startswith(KNOWS_ROPE))
    ]
    assert not wrong, "\n".join(wrong)


def test_parts_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for part, target, _ in inner_imports():
        if part != target:
            graph.setdefault(part, set()).add(target)
    graphlib.TopologicalSorter(
        graph
    ).prepare()  # raises CycleError, which names the circle


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, and its file."""
    found = {}
    for _, path in sources():
        name = f"{package_of(path)}.{path.stem}".removesuffix(".__init__")
        found[name] = path
    return found


def modules_imported(path: Path, known: Mapping[str, object]) -> set[str]:
    """The modules that a file imports: at import time, inside functions and for its annotations."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write the whole name"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                compiled = (
                    (ROOT / inside.replace(".", "/")).with_suffix(".pyi").is_file()
                )
                targets.add(inside if inside in known or compiled else str(node.module))
    return targets & known.keys()


def imports_of(known: Mapping[str, Path]) -> dict[str, set[str]]:
    return {
        name: modules_imported(path, known) - {name} for name, path in known.items()
    }


def test_modules_do_not_import_each_other_in_circles() -> None:
    graphlib.TopologicalSorter(
        imports_of(modules())
    ).prepare()  # CycleError names the circle


@pytest.mark.parametrize(
    "statement",
    [
        "import ggext.b",
        "def f():\n    from ggext.b import x",
        "if TYPE_CHECKING:\n    from ggext import b",
    ],
)
def test_a_circle_of_any_kind_is_found(tmp_path: Path, statement: str) -> None:
    files = {"ggext.a": tmp_path / "a.py", "ggext.b": tmp_path / "b.py"}
    files["ggext.a"].write_text(statement)
    files["ggext.b"].write_text("from ggext.a import y")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(imports_of(files)).prepare()


def test_heavy_packages_stay_where_they_belong() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {part} imports {name}"
        for part, path in sources()
        for line, name in imported(path, package_of(path))
        if part not in KEPT_IN.get(name.split(".")[0], {part})
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "folder", ["ggext", "converters", "tests", "tools", "benchmarks"]
)
def test_nothing_imports_a_second_copy_of_converters(folder: str) -> None:
    """`import converters` would load the family modules twice, under two names."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in imported(path, package_of(path))
        if name.split(".")[0] == "converters"
    ]
    assert not wrong, wrong


def test_converters_are_installed_inside_ggext() -> None:
    import ggext.converters

    assert ggext.converters.__name__ == "ggext.converters"
    assert "converters" not in sys.modules


def test_the_pin_of_llama_cpp_stands_once() -> None:
    """In `ggext.llama_cpp_facts.pin`; the package's metadata, which pip reads, holds the release a second time."""
    (requirement,) = (
        r for r in metadata.requires("ggext") or [] if "llama-cpp-python" in r
    )
    assert (
        requirement.split(";")[0].strip() == f"llama-cpp-python=={pin.LLAMA_CPP_PYTHON}"
    )
    places = {"ggext/llama_cpp_facts/pin.py", "pyproject.toml"}
    code = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    plain = [ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt")]
    again = {
        str(path.relative_to(ROOT))
        for path in [
            *code,
            *plain,
            *(ROOT / ".ci").iterdir(),
            *(ROOT / ".github").rglob("*.yml"),
        ]
        if path.is_file()
        for number in (pin.LLAMA_CPP_PYTHON, pin.LLAMA_CPP_COMMIT)
        if number in path.read_text(encoding="utf-8")
    }
    assert again == places


def test_version_and_data_are_the_distribution_s() -> None:
    import ggext

    assert ggext.__version__ == metadata.version("ggext")
    assert resources.files("ggext").joinpath("py.typed").is_file()
    assert resources.files("ggext").joinpath("data").is_dir()


def test_the_readmes_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word by word, on the embedded model in place of MODEL."""
    import shutil

    from ggext.checkpoint.named import DEMO_MODEL

    pytest.importorskip("transformers")
    readme = (ROOT / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    told: list[object] = []
    exec(code, {"print": lambda *values: told.extend(values)})
    assert told[0] is True
    assert (tmp_path / "model-16k.gguf").exists()
