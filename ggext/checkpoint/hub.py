"""Models by their id on the Hugging Face hub (``Qwen/Qwen3-0.6B``), through ``huggingface_hub``.

Its cache, its token and its resuming are used as they are: a lost connection goes on at the byte
within a run, a later run keeps the files that have arrived whole. What is fetched is only what
``ggext`` reads, and every failure is one line that says what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.contents import what_it_is
from ggext.checkpoint.files import quote
from ggext.checkpoint.weights import FORMATS, files_of, preferred
from ggext.errors import HubError, MissingExtraError

if TYPE_CHECKING:
    from tqdm import tqdm

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
#: Names that end so are files, not models on the hub.
_FILES = (".gguf", ".safetensors", ".bin", ".json", ".model", ".toml")
_SMALL_FILES = [
    *(
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "README.md",
        "adapter_config.json",
        "params.json",
    ),
    *(
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
    ),
    *("tekken.json", "*.tiktoken", "tiktoken.model", "tokenization_*.py"),
    *(
        "chat_template.json",
        "chat_template.jinja",
        "additional_chat_templates/*.jinja",
        "chat_templates/*.jinja",
    ),
    *(f"{name}.index.json" for name in FORMATS),
]


#: Shards whose index is not in the repository.
_UNINDEXED = "model-*-of-*.safetensors"

#: Raises for a checkpoint's folder whose weights are not to be fetched.
Check = Callable[[Path], None]


def is_hub_id(path: Path) -> bool:
    """Whether ``path`` is nothing on this machine and has the form ``owner/name``."""
    return is_hub_name(path.as_posix()) and not path.exists()


def is_hub_name(text: str) -> bool:
    """Whether ``text`` has the form ``owner/name``."""
    return bool(_ID.fullmatch(text)) and not text.endswith(_FILES)


def fetch(
    path: Path,
    revision: str | None = None,
    *,
    show_progress: bool = False,
    check: Check | None = None,
) -> Path:
    """The local folder of the model with the id ``path``, fetched where the cache does not have it
    whole.

    ``revision``: a branch, a tag or a commit. ``show_progress``: bars on standard error, where that
    is a terminal. ``check``: raises for a folder whose weights are not to be fetched, the small
    files being there. Raises ``HubError``.
    """
    remote, folder = _small_files(path, revision, show_progress, check)
    for name in preferred(folder):
        names = files_of(folder, name)
        if names:
            remote.download(names)
        if names and all((folder / n).is_file() for n in names):
            return folder
    remote.download([_UNINDEXED])
    if any(folder.glob(_UNINDEXED)):
        return folder
    reason = what_it_is(folder) or (
        f"has neither {' nor '.join(FORMATS)}; give a repository with such weights"
    )
    raise HubError(f"{remote.name} {reason}")


@contextmanager
def headers_alone(
    path: Path, revision: str | None = None, *, check: Check | None = None
) -> Iterator[Path]:
    """As ``fetch``, for a plan: of safetensors that the cache does not have, only the headers are
    fetched, and in the folder that is given, which is removed afterwards, their values are
    holes."""
    remote, folder = _small_files(path, revision, show_progress=False, check=check)
    with TemporaryDirectory() as temporary:
        hollow = Path(
            temporary, *folder.parts[-3:]
        )  # models--OWNER--NAME/snapshots/COMMIT: ``model_name`` reads it
        hollow.mkdir(parents=True)
        for file in folder.iterdir():
            (hollow / file.name).symlink_to(file)
        there = any(
            _hollow(remote, hollow, files_of(folder, name))
            for name in preferred(folder)
            if not name.startswith("pytorch_model")
        )
        yield hollow if there else fetch(path, revision)


def _hollow(remote: Repository, folder: Path, names: list[str]) -> bool:
    """Whether all of the safetensors files are there, or their headers could be fetched."""
    return bool(names) and all(
        (folder / name).exists() or remote.header(name, folder / name) for name in names
    )


def _small_files(
    path: Path, revision: str | None, show_progress: bool, check: Check | None
) -> tuple[Repository, Path]:
    """What there is to be had, and its folder with all but the weights."""
    _import_hub(path.as_posix())
    remote = Repository(path.as_posix(), revision, show_progress=show_progress)
    folder = remote.download(_SMALL_FILES)
    if not (folder / "config.json").is_file():
        reason = (
            what_it_is(folder)
            or "has no config.json, so it is no model that can be converted"
        )
        raise HubError(f"{remote.name} {reason}; see {remote.page}")
    if check is not None:
        check(folder)
    return remote, folder


def _import_hub(model: str) -> None:
    """Without its warnings, which do not come from a command line."""
    try:
        from huggingface_hub.utils import logging
    except ImportError:
        raise MissingExtraError(
            "huggingface_hub", "hub", f"{model} is not on this machine; fetching it"
        ) from None
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def model_name(folder: Path) -> str | None:
    """The model's name where ``folder`` is one of the hub's cache (named after the commit), else
    ``None``."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.rsplit("--", 1)[-1]


def _bars(show: bool, description: str) -> type[tqdm[Any]]:
    """One bar of bytes written; huggingface_hub would show three, of files, of bytes and of bytes
    received."""
    from tqdm import tqdm

    class Bytes(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            hidden = (
                not show
                or options.get("unit") != "B"
                or options.get("desc") == "Downloading bytes"
            )
            options |= {
                "desc": description,
                "leave": False,
                "disable": True if hidden else None,
                "bar_format": None,
            }
            super().__init__(*args, **options)

        def set_description(self, *_: Any, **__: Any) -> None:
            pass

    return Bytes


class Repository:
    """One repository at one revision. The first download settles the commit for the following
    ones."""

    def __init__(
        self, repository: str, revision: str | None, *, show_progress: bool = False
    ) -> None:
        self.repository = repository
        self.revision = revision
        self.show_progress = show_progress
        self.commit: str | None = None
        self.name = f"the model {repository}" + (
            f" at revision {quote(revision)}" if revision else ""
        )

    @property
    def page(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repository}"

    def files(self) -> list[str]:
        """The names of all its files. Raises ``HubError``."""
        _import_hub(self.repository)
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(self.repository, revision=self.revision)
        except Exception as error:  # noqa: BLE001 - as for a download
            raise self._failure(error) from None
        return [sibling.rfilename for sibling in info.siblings or []]

    def download(self, files: list[str]) -> Path:
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(
                self.repository,
                revision=self.commit or self.revision,
                allow_patterns=files,
                tqdm_class=_bars(
                    self.show_progress, self.repository.rsplit("/", 1)[-1]
                ),
            )
        except Exception as error:  # noqa: BLE001 - the network and the disk raise what they like
            raise self._failure(error) from None
        self.commit = Path(folder).name
        return Path(folder)

    def header(self, name: str, target: Path) -> bool:
        """Write a safetensors file with the header of the repository's and a hole for its values.
        False: it has no such file."""
        from huggingface_hub import HfApi, errors

        try:
            tensors = (
                HfApi()
                .parse_safetensors_file_metadata(
                    self.repository, name, revision=self.commit
                )
                .tensors
            )
            entries = {
                key: {
                    "dtype": t.dtype,
                    "shape": t.shape,
                    "data_offsets": t.data_offsets,
                }
                for key, t in tensors.items()
            }
            header = json.dumps(entries).encode()
            with target.open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                file.truncate(
                    8
                    + len(header)
                    + max((t.data_offsets[1] for t in tensors.values()), default=0)
                )
        except errors.EntryNotFoundError:
            return False
        except Exception as error:  # noqa: BLE001 - as above; and the header may be anything
            raise self._failure(error) from None
        return True

    def _failure(self, error: Exception) -> HubError:
        from huggingface_hub import constants, errors

        if isinstance(error, errors.GatedRepoError):
            return HubError(
                f"{self.name} is gated: accept its terms at {self.page}, then log in (hf auth "
                "login) or set HF_TOKEN"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return HubError(
                f"{self.repository} is neither a path on this machine nor a model at "
                f"{constants.ENDPOINT} that you may "
                "read; check the spelling, and for a private one log in (hf auth login) or set "
                "HF_TOKEN"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(
                f"{self.name} does not exist; its branches and tags are at {self.page}/tree/main"
            )
        if (
            isinstance(error, errors.LocalEntryNotFoundError)
            and constants.HF_HUB_OFFLINE
        ):
            return HubError(
                f"{self.name} is not whole in the cache {constants.HF_HUB_CACHE} and "
                "HF_HUB_OFFLINE forbids to fetch "
                "it; unset HF_HUB_OFFLINE, or give a folder"
            )
        reason = (
            " ".join(str(error.__cause__ or error).split())[:200]
            or type(error).__name__
        )
        return HubError(
            f"{self.name} is not on this machine and could not be fetched from "
            f"{constants.ENDPOINT}: {reason}; "
            "check the spelling, or run the command again: files that have arrived whole are kept"
        )
