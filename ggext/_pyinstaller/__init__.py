"""What PyInstaller asks for when a program that uses ggext is frozen (entry point pyinstaller40).

The hooks in this folder collect what no import statement shows, and a frozen program starts with
``rthooks/pyi_rth_ggext.py``: it can be its own child process.
"""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folder of the hooks."""
    return [str(Path(__file__).parent)]
