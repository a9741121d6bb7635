"""The recipe: what was asked for, kept in the file itself (``ggext.recipe``, JSON) so that it can
be proved or replaced later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ggext._version import __version__
from ggext.arguments import check_fields
from ggext.errors import RopeError, UsageError
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT
from ggext.rope import methods
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

RECIPE_KEY = "ggext.recipe"
COMMAND_LINE = "the command line"
PROGRAM = "a program"
CHECKPOINT = "the checkpoint's config.json"
SEARCH = "ggext search"
_MAX_RECIPE = 1 << 20


@dataclass(frozen=True)
class Searched:
    """What a search measured of a scaling, on texts that it was not chosen by."""

    # What the losses are of: "needles", or "key tokens".
    objective: str
    # Of the random numbers.
    seed: int
    # Tables that were measured.
    evaluations: int
    # Documents that it was judged on, and their mean losses in nats: YaRN's, and this scaling's.
    held_out: int
    yarn_loss: float
    loss: float
    # The 95 % interval of the paired difference of the two.
    low: float
    high: float
    # By how much the loss on short texts is above YaRN's, relative to it.
    short_rise: float

    def __post_init__(self) -> None:
        check_fields(self)

    def in_words(self) -> str:
        """One line: what was won, and what it costs on short texts."""
        return (
            f"loss on {self.objective} {self.yarn_loss:.4f} → {self.loss:.4f} on {self.held_out} "
            f"held-out texts (95 % {self.low:+.4f} to {self.high:+.4f}), short texts "
            f"{100 * self.short_rise:+.2f} %; seed {self.seed}, {self.evaluations} tables"
        )


@dataclass(frozen=True)
class Recipe:
    """What a file says of its own scaling."""

    scaling: RopeScaling
    geometry: RopeGeometry
    # The form in the file.
    encoding: str
    # Who asked: COMMAND_LINE, PROGRAM, CHECKPOINT or SEARCH.
    source: str
    ggext_version: str = __version__
    # What the search measured, where that asked.
    searched: Searched | None = None

    @property
    def by_checkpoint(self) -> bool:
        return self.source == CHECKPOINT

    @property
    def asked_by(self) -> str:
        """Who asked, with the seed where that was a search."""
        return (
            self.source
            if self.searched is None
            else f"{self.source}, seed {self.searched.seed}"
        )

    def table(self) -> RopeTable:
        return methods.make_table(self.scaling, self.geometry)

    def as_dict(self) -> dict[str, Any]:
        values = {
            "ggext": self.ggext_version,
            "llama.cpp": LLAMA_CPP_COMMIT,
            "source": self.source,
            "encoding": self.encoding,
            "scaling": {"method": self.scaling.method, **self.scaling.given()},
            "geometry": asdict(self.geometry),
        }
        return (
            values
            if self.searched is None
            else {**values, "searched": asdict(self.searched)}
        )


def parse_recipe(text: str) -> Recipe:
    """Raises ``RopeError`` for a recipe that is malformed or asks for what cannot be made."""
    try:
        if len(text) > _MAX_RECIPE:
            raise ValueError("too long")
        values = json.loads(text)
        geometry = RopeGeometry(**_with_tuples(values["geometry"]))
        scaling = RopeScaling(**_with_tuples(values["scaling"]))
        searched = values.get("searched")
        searched_values = None if searched is None else Searched(**searched)
        recipe = Recipe(
            scaling,
            geometry,
            str(values["encoding"]),
            str(values["source"]),
            str(values["ggext"]),
            searched_values,
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
