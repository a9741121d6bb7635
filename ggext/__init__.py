"""ggext: long contexts for local models, baked into GGUF files, proved in numbers, and run.

Importing this package is cheap: nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ggext.errors import GgextError

if TYPE_CHECKING:
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable
    from ggext.verify import verify

__version__ = "0.1.0"

_LAZY = {
    "ConvertOptions": "ggext.convert",
    "convert": "ggext.convert",
    "verify": "ggext.verify",
    "RopeGeometry": "ggext.rope.scaling",
    "RopeScaling": "ggext.rope.scaling",
    "RopeTable": "ggext.rope.scaling",
}

__all__ = [
    "ConvertOptions",
    "GgextError",
    "RopeGeometry",
    "RopeScaling",
    "RopeTable",
    "__version__",
    "convert",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ggext' has no attribute {name!r}")
