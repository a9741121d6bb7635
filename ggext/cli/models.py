"""A model on the command line: a path, or a name that ``ggext list`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Model(click.ParamType[Path]):
    """The file that is meant. A path that exists is itself; ``demo`` and the ids of checkpoints on
    the hub are left to the command."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.exists() or str(value) == "demo":
            return path
        from ggext.checkpoint import hub
        from ggext.checkpoint.stores import find_stored

        found = find_stored(str(value), Path())
        if found is not None and found.is_gguf:
            return found.path
        repository, colon, _ = str(value).partition(":")
        if colon and hub.is_hub_name(repository):
            self.fail(f"{value} is not on this machine; ggext pull {value} fetches it", param, ctx)
        return path


MODEL = Model()
