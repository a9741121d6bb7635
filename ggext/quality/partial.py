"""What ``ggext eval`` measured, written down at once, so that a run that ends early can go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ggext.quality.items import Item, Result, as_json, from_json, parsed_key
from ggext.quality.kept_lines import KeptLines
from ggext.quality.settings import EvalOptions
from ggext.quality.tasks import DEPTHS
from ggext.quality.texts import digest

_FORMAT = "ggext eval, partial run 1"

Results = dict[tuple[str, Item], Result]


def run_header(options: EvalOptions) -> dict[str, Any]:
    """What must be the same for results to be of one run; lengths and trials may grow."""
    read = [*options.texts, *filter(None, [options.questions])]
    return {
        "format": _FORMAT,
        "seed": options.seed,
        "form": options.form,
        "protocol": options.protocol,
        "texts": [digest(path) for path in read],
        **_environment(),
        **_changed(options),
    }


def _changed(options: EvalOptions) -> dict[str, Any]:
    """What is newer than the format, where it is asked for."""
    changed: dict[str, Any] = {}
    if options.marks:
        changed["marks"] = True
    if options.needles != DEPTHS:
        changed["needles"] = options.needles
    return changed


def _environment() -> dict[str, str]:
    """What of the environment changes a result: llama.cpp may leave quantized caches unrotated."""
    name = "LLAMA_ATTN_ROT_DISABLE"
    return {name: os.environ[name]} if name in os.environ else {}


class PartialRun:
    """The file of a run that may end early; None: nothing is kept.

    ``results``: what an earlier run left in it. Raises UsageError for a file that is none, or of
    another run; nothing is changed then.
    """

    def __init__(self, path: Path | None, options: EvalOptions) -> None:
        self.results: Results = {}
        self._kept = KeptLines(
            path, run_header(options), "partial run of ggext eval", self._take
        )

    def add(self, setting: str, item: Item, result: Result) -> None:
        """Keeps a result."""
        self.results[setting, item] = result
        self._kept.add(
            {"setting": setting, "item": item.key, "result": as_json(result)}
        )

    def close(self) -> None:
        """Ends writing; further calls do nothing."""
        self._kept.close()

    def _take(self, values: dict[str, Any]) -> None:
        item = parsed_key(values["item"])
        self.results[str(values["setting"]), item] = from_json(item, values["result"])
