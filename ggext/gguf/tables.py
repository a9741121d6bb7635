"""The tables of the ``gguf`` package: names of tensors, types and the sizes of their blocks.

Its ``__init__`` imports NumPy, yaml and sentencepiece too, 0.15 s that reading a header need not
wait for. They need nothing but each other, so they are imported as those of a package that is found
where ``gguf`` is.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import constants, tensor_mapping

__all__ = ["constants", "tensor_mapping"]

_PACKAGE = "ggext.gguf._tables"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        spec = find_spec("gguf")
        assert spec is not None  # a dependency
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[_PACKAGE] = package
    return import_module(f"{_PACKAGE}.{name}")
