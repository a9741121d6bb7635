"""Model families: one short module each, named after its ``model_type``.

Installed as ``ggext.converters``; import it under that name only. A new family is a module here and
a line in ``_MODULES``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ggext.checkpoint.files import quote
from ggext.errors import CheckpointError

if TYPE_CHECKING:
    from ggext.converters.base import Family

    from ggext.checkpoint.config import Config

#: ``model_type`` of a config.json → the module that knows it.
_MODULES = {model_type: model_type for model_type in ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")}


def family_of(config: Config) -> Family:
    """The converter of a checkpoint. Raises ``CheckpointError`` naming the known families."""
    model_type = config.string("model_type")
    if model_type not in _MODULES:
        raise CheckpointError(
            f"{config.source}: model_type {quote(model_type)} is not a family that ggext converts; known: "
            f"{', '.join(_MODULES)}; --via-llama-cpp FOLDER runs llama.cpp's own converter from its source"
        )
    module = import_module(f"ggext.converters.{_MODULES[model_type]}")
    family: Family = module.FAMILY(config)
    return family
