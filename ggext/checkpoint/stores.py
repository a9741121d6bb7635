"""Models that are on this machine already: in a folder, the hub's cache, Ollama's and LM Studio's
stores. They are read and never changed; a model that is found is used where it lies."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

from ggext.checkpoint.weights import FORMATS

Store = Literal["folder", "hub", "ollama", "lmstudio"]

_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.ASCII)
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)
_MODEL_LAYER = "application/vnd.ollama.image.model"
_LARGEST_MANIFEST = 1 << 20
#: Registry and owner that Ollama's names leave out.
_REGISTRY = "registry.ollama.ai"
_LIBRARY = "library"


@dataclass(frozen=True)
class StoredModel:
    """A model that a command can open."""

    # What a command takes for it.
    name: str
    store: Store
    # A GGUF file (of several parts the first), or a checkpoint's folder.
    path: Path
    # Bytes of all its weights.
    size: int

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()


def stored_models(folder: Path) -> list[StoredModel]:
    """All of them, those of ``folder`` first."""
    return [
        *_of_folder(folder),
        *_of_hub(hub_cache()),
        *(model for root in ollama_models() for model in _of_ollama(root)),
        *(model for root in lmstudio_models() for model in _of_lmstudio(root)),
    ]


def find_stored(name: str, folder: Path) -> StoredModel | None:
    """The model that ``stored_models`` lists as ``name``. A name without a tag means Ollama's
    ``:latest``; after the colon of a repository a part of a file's name will do (``Q4_K_M``), as
    ``ggext pull`` takes it, where it is one file's."""
    models = stored_models(folder)
    listed = {model.name: model for model in reversed(models)}
    exact = listed.get(name) or listed.get(f"{name}:latest")
    repository, _, part = name.partition(":")
    if exact is not None or not part:
        return exact
    of_hub = [
        m for m in models if m.store == "hub" and m.name.startswith(f"{repository}:")
    ]
    fitting = [m for m in of_hub if part.lower() in m.name[len(repository) :].lower()]
    return fitting[0] if len(fitting) == 1 else None


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetched, by the same environment variables."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or Path(caches, "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def ollama_models() -> list[Path]:
    """The folder that OLLAMA_MODELS names, as Ollama's envconfig has it, else the user's own and
    that of the service which its installer for Linux sets up."""
    named = os.environ.get("OLLAMA_MODELS")
    roots = (
        [named] if named else ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]
    )
    return [Path(root).expanduser() for root in roots]


def lmstudio_models() -> list[Path]:
    """The folder of today's LM Studio, wherever its home is, and that of versions before 0.3."""
    home = Path.home()
    homes = [home / ".lmstudio"]
    with suppress(OSError, UnicodeDecodeError):
        homes.insert(
            0, Path((home / ".lmstudio-home-pointer").read_text("utf-8").strip())
        )
    roots = [
        *(one / "models" for one in homes),
        home / ".cache" / "lm-studio" / "models",
    ]
    return [root for root in dict.fromkeys(roots) if root.is_dir()]


def size_on_disk(path: Path) -> int:
    """Bytes of a model's weights: of all parts of a GGUF file, of a checkpoint's weight files."""
    if path.is_dir():
        endings = {Path(name).suffix for name in FORMATS}
        return sum(
            file.stat().st_size for file in _listed(path) if file.suffix in endings
        )
    match = _PART.fullmatch(path.name)
    if match is None:
        return path.stat().st_size
    pattern = f"{escape(match[1])}-*-of-{match[3]}.gguf"
    return sum(part.stat().st_size for part in path.parent.glob(pattern))


def is_ollama_blob(path: Path) -> bool:
    """Whether a file's name is its checksum, as in Ollama's store."""
    return path.parent.name == "blobs" and _DIGEST.fullmatch(path.name) is not None


def _of_folder(folder: Path) -> Iterator[StoredModel]:
    for path in _listed(folder):
        if _is_model_file(path):
            yield StoredModel(path.name, "folder", path, size_on_disk(path))
        elif (path / "config.json").is_file() and (size := size_on_disk(path)):
            yield StoredModel(path.name, "folder", path, size)


def _of_hub(cache: Path) -> Iterator[StoredModel]:
    for repository in _listed(cache):
        snapshot = (
            _snapshot(repository) if repository.name.startswith("models--") else None
        )
        if snapshot is None:
            continue
        name = repository.name.removeprefix("models--").replace("--", "/")
        if (snapshot / "config.json").is_file() and (size := size_on_disk(snapshot)):
            yield StoredModel(name, "hub", snapshot, size)
        for path in sorted(snapshot.rglob("*.gguf")):
            if _is_model_file(path):
                file = path.relative_to(snapshot).as_posix()
                yield StoredModel(f"{name}:{file}", "hub", path, size_on_disk(path))


def _snapshot(repository: Path) -> Path | None:
    """The commit that ``main`` names, else the latest that is there."""
    with suppress(OSError, UnicodeDecodeError):
        commit = Path((repository / "refs" / "main").read_text("utf-8").strip()).name
        if commit and (named := repository / "snapshots" / commit).is_dir():
            return named
    snapshots = [path for path in _listed(repository / "snapshots") if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _of_ollama(models: Path) -> Iterator[StoredModel]:
    manifests = models / "manifests"
    for path in _files(manifests):
        parts = path.relative_to(manifests).parts
        if len(parts) != 4 or not path.is_file():
            continue
        blob = _model_blob(models, path)
        if blob is not None:
            yield StoredModel(_ollama_name(*parts), "ollama", blob, blob.stat().st_size)


def _files(folder: Path) -> list[Path]:
    """All files below a folder that may be missing, or closed to us."""
    try:
        return sorted(folder.rglob("*"))
    except OSError:
        return []


def _ollama_name(registry: str, owner: str, model: str, tag: str) -> str:
    """As ``ollama list`` prints it."""
    parts = [model]
    if registry != _REGISTRY:
        parts = [registry, owner, model]
    elif owner != _LIBRARY:
        parts = [owner, model]
    return f"{'/'.join(parts)}:{tag}"


def _model_blob(models: Path, manifest: Path) -> Path | None:
    """The GGUF file of a manifest, ``None`` where it is malformed, has none or more than one."""
    try:
        if manifest.stat().st_size > _LARGEST_MANIFEST:
            return None
        layers: Any = json.loads(manifest.read_bytes())["layers"]
        digests = [
            layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_LAYER
        ]
        matches = [_DIGEST.fullmatch(digest) for digest in digests]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if len(matches) != 1 or matches[0] is None:
        return None
    blob = models / "blobs" / f"sha256-{matches[0][1]}"
    return blob if blob.is_file() else None


def _of_lmstudio(root: Path) -> Iterator[StoredModel]:
    for path in sorted(root.glob("*/*/*.gguf")):
        if _is_model_file(path):
            name = path.relative_to(root).as_posix()
            yield StoredModel(name, "lmstudio", path, size_on_disk(path))


def _is_model_file(path: Path) -> bool:
    """Whether it is a model's first file, by its name; projectors for images are none."""
    if not path.name.lower().endswith(".gguf") or path.name.startswith((".", "mmproj")):
        return False
    match = _PART.fullmatch(path.name)
    return (match is None or int(match[2]) == 1) and path.is_file()


def _listed(folder: Path) -> list[Path]:
    """What is in a folder that may be missing, or closed to us."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
