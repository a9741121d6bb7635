"""How a module of ggext is run in a process of its own, from a script and from a frozen program."""

from __future__ import annotations

import importlib.util
import os
import re
import sys

#: Attribute of ``sys`` that a frozen program has whose start can run a module instead (set by
#: ``ggext/_pyinstaller``). Without it the program itself would start a second time.
RUNS_MODULES = "ggext_runs_modules"


def module_command(module: str) -> list[str] | None:
    """The command that runs a module with this process's packages; None where there is none.

    There is none in a host whose ``sys.executable`` is not a Python, nor in a frozen program that
    was made without ggext's hooks.
    """
    if getattr(sys, "frozen", False):
        return [sys.executable, "-m", module] if hasattr(sys, RUNS_MODULES) else None
    return [sys.executable, "-P", "-m", module] if _is_python(sys.executable) else None


def script_command(module: str) -> list[str] | None:
    """The same for a module that needs the standard library alone: it starts three times faster."""
    if getattr(sys, "frozen", False):
        return module_command(module)
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return module_command(module)
    return [sys.executable, "-I", "-S", spec.origin] if _is_python(sys.executable) else None


def environment() -> dict[str, str]:
    """For `module_command`: this process's environment, in which its packages are found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _is_python(executable: str | None) -> bool:
    name = os.path.basename(executable or "").lower()
    return re.match(r"(python|pypy)[\d.w]*(\.exe)?$", name) is not None
