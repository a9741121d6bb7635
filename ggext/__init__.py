"""ggext: long contexts for local models, baked into GGUF files, proved in numbers, and run.

`Model` loads a GGUF file and talks; ``ggext.convert.convert`` bakes one and ``ggext.verify.verify``
proves it. Importing this costs nothing: the names below are found when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ggext._version import __version__
from ggext.errors import ContextFullError, EngineDiedError, GgextError

if TYPE_CHECKING:
    from ggext.api import (
        Model,
        Reading,
        Reasoning,
        Reply,
        ReplyEvent,
        Settings,
        Text,
        Turn,
    )
    from ggext.chat.renderer import freeze_support
    from ggext.chat.template import TemplateChoice
    from ggext.quality.report import EvalReport
    from ggext.quality.run import evaluate
    from ggext.quality.settings import EvalOptions
    from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable
    from ggext.runtime.context import SessionOptions
    from ggext.runtime.memory.options import MemoryOptions
    from ggext.runtime.prefixes import PrefixOptions
    from ggext.runtime.sampling import Sampling, json_grammar

__all__ = [
    "ContextFullError",
    "EngineDiedError",
    "EvalOptions",
    "EvalReport",
    "GgextError",
    "MemoryOptions",
    "Model",
    "PrefixOptions",
    "Reading",
    "Reasoning",
    "Reply",
    "ReplyEvent",
    "RopeGeometry",
    "RopeScaling",
    "RopeTable",
    "Sampling",
    "SessionOptions",
    "Settings",
    "TemplateChoice",
    "Text",
    "Turn",
    "__version__",
    "evaluate",
    "freeze_support",
    "json_grammar",
]

_LAZY = {
    **dict.fromkeys(
        (
            "Model",
            "Reading",
            "Reasoning",
            "Reply",
            "ReplyEvent",
            "Settings",
            "Text",
            "Turn",
        ),
        "ggext.api",
    ),
    **dict.fromkeys(("RopeGeometry", "RopeScaling", "RopeTable"), "ggext.rope.scaling"),
    **dict.fromkeys(("Sampling", "json_grammar"), "ggext.runtime.sampling"),
    "EvalOptions": "ggext.quality.settings",
    "EvalReport": "ggext.quality.report",
    "evaluate": "ggext.quality.run",
    "SessionOptions": "ggext.runtime.context",
    "TemplateChoice": "ggext.chat.template",
    "PrefixOptions": "ggext.runtime.prefixes",
    "MemoryOptions": "ggext.runtime.memory.options",
    "freeze_support": "ggext.chat.renderer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ggext' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
