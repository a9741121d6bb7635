"""Fetches a checkpoint, or a GGUF file, from the hub into its cache, and names it as ``ggext list``
does."""

from __future__ import annotations

import re
from pathlib import Path

from ggext.checkpoint import hub
from ggext.checkpoint.stores import StoredModel, size_on_disk
from ggext.errors import HubError, UsageError

#: Taken of several GGUF files where none is named, as llama.cpp and Ollama do.
USUAL = "Q4_K_M"
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)
_SHOWN = 12


def pull(
    name: str, revision: str | None = None, *, show_progress: bool = False
) -> StoredModel:
    """``name``: OWNER/NAME or OWNER/NAME:FILE. Raises ``UsageError`` for another form, ``HubError``
    for what cannot be had."""
    repository, _, file = name.partition(":")
    if not hub.is_hub_name(repository):
        raise UsageError(
            f"{name!r} is no model's id on the hub; write OWNER/NAME or OWNER/NAME:FILE"
        )
    remote = hub.Repository(repository, revision, show_progress=show_progress)
    names = [path for path in remote.files() if path.lower().endswith(".gguf")]
    if not file and not names:
        folder = hub.fetch(Path(repository), revision, show_progress=show_progress)
        return StoredModel(repository, "hub", folder, size_on_disk(folder))
    parts = _chosen(remote.name, _models(names), file)
    path = remote.download(parts) / parts[0]
    return StoredModel(f"{repository}:{parts[0]}", "hub", path, size_on_disk(path))


def _models(names: list[str]) -> list[list[str]]:
    """The files of each model, a set of parts being one; projectors for images are none."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if not Path(name).name.lower().startswith("mmproj"):
            match = _PART.fullmatch(name)
            model = match[1] if match else name
            models.setdefault(model, []).append(name)
    return list(models.values())


def _chosen(repository: str, models: list[list[str]], file: str) -> list[str]:
    exact = [parts for parts in models if file in parts]
    part_of_name = [
        parts for parts in models if (file or USUAL).lower() in parts[0].lower()
    ]
    matches = exact or part_of_name or ([] if file else models)
    if len(matches) == 1:
        return matches[0]
    names = [parts[0] for parts in matches or models]
    more = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
    listed = ", ".join(names[:_SHOWN]) + more
    if not models:
        raise HubError(f"{repository} has no GGUF files")
    if not matches:
        raise HubError(f"{repository} has no GGUF file {file}; it has {listed}")
    raise HubError(
        f"{repository} has several GGUF files; name one, ID:FILE, of {listed}"
    )
