"""What names a model: a path, the word ``demo``, the id of a model on the hub."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ggext.checkpoint import hub
from ggext.checkpoint.files import quote
from ggext.errors import CheckpointError, UsageError

#: The checkpoint of the project's own chat model, installed with the package.
DEMO_MODEL = Path(__file__).parents[1] / "data" / "demo-model"


def named_model(
    path: Path,
    revision: str | None = None,
    *,
    show_progress: bool = False,
    check: hub.Check | None = None,
) -> Path:
    """``path``, or what stands for it where nothing has that name: the embedded model's folder for
    the word ``demo``, the folder in the hub's cache, fetched if need be, for the id of a model
    there (``hub.fetch``).

    ``check``: raises for what is to be refused before its weights are fetched.
    """
    _check_length(path)
    if hub.is_hub_id(path):
        return hub.fetch(path, revision, show_progress=show_progress, check=check)
    if revision is not None:
        raise UsageError(
            f"revision={revision} is for models on the hub; {path} is none"
        )
    return DEMO_MODEL if str(path) == "demo" and not path.exists() else path


def _check_length(path: Path) -> None:
    """Raises CheckpointError for what no file's name can be."""
    try:
        path.lstat()
    except (OSError, ValueError) as error:
        if getattr(error, "errno", 0) == errno.ENAMETOOLONG:
            raise CheckpointError(
                f"{quote(str(path))} is too long for the name of a file; check the path"
            ) from None


@contextmanager
def planned_model(
    path: Path, revision: str | None = None, *, check: hub.Check
) -> Iterator[Path]:
    """``named_model`` for a plan alone, in the block: of a model on the hub no weights are fetched,
    and ``check`` must not raise."""
    _check_length(path)
    if hub.is_hub_id(path):
        with hub.headers_alone(path, revision, check=check) as folder:
            yield folder
    else:
        yield named_model(path, revision)


def shown(path: Path) -> str:
    """``path`` for a message: the embedded model and those of the hub under their names."""
    return "demo" if path == DEMO_MODEL else hub.model_name(path) or str(path)


def model_name(folder: Path) -> str:
    return (
        "demo"
        if folder == DEMO_MODEL
        else hub.model_name(folder) or folder.resolve().name or "model"
    )
