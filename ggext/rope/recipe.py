"""The recipe: what was asked for, kept in the file itself (``ggext.recipe``, JSON) so that it can
be proved or replaced later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ggext._version import __version__
from ggext.errors import RopeError, UsageError
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT
from ggext.rope import methods
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

RECIPE_KEY = "ggext.recipe"
COMMAND_LINE = "the command line"
CHECKPOINT = "the checkpoint's config.json"
_MAX_RECIPE = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """``source``: who asked, ``COMMAND_LINE`` or ``CHECKPOINT``. ``encoding``: the form in the
    file."""

    scaling: RopeScaling
    geometry: RopeGeometry
    encoding: str
    source: str
    ggext_version: str = __version__

    @property
    def by_checkpoint(self) -> bool:
        return self.source == CHECKPOINT

    def table(self) -> RopeTable:
        return methods.make_table(self.scaling, self.geometry)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ggext": self.ggext_version,
            "llama.cpp": LLAMA_CPP_COMMIT,
            "source": self.source,
            "encoding": self.encoding,
            "scaling": {"method": self.scaling.method, **self.scaling.given()},
            "geometry": asdict(self.geometry),
        }


def parse_recipe(text: str) -> Recipe:
    """Raises ``RopeError`` for a recipe that is malformed or asks for what cannot be made."""
    try:
        if len(text) > _MAX_RECIPE:
            raise ValueError("too long")
        values = json.loads(text)
        geometry = RopeGeometry(**_with_tuples(values["geometry"]))
        scaling = RopeScaling(**_with_tuples(values["scaling"]))
        recipe = Recipe(
            scaling, geometry, str(values["encoding"]), str(values["source"]), str(values["ggext"])
        )
        recipe.table()
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
        UsageError,
    ) as error:
        raise RopeError(
            f"{RECIPE_KEY} in the file is malformed ({error}); bake the file again"
        ) from None
    return recipe


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
