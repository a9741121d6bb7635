"""The settings of a kept chat, in a file next to its journal, so that it comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ggext.arguments import check_fields
from ggext.chat.folder import SETTINGS
from ggext.errors import OutputError, UsageError
from ggext.gguf.plain_files import private_file, read_plain

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class KeptSettings:
    """What a chat runs with, under the names of the options of ``ggext chat``. Raises UsageError
    for a value of another type."""

    # the path of the model's file
    model: str = ""
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: Literal["show", "hide", "off"] | None = None
    when_full: str = "stop"
    keep: float = 1.0
    evicted: str | None = None
    # bytes
    evicted_memory: int | None = None
    # tokens; auto: what fits into the memory; None: as a new chat chooses
    ctx: int | Literal["auto"] | None = None
    kv: str = "f16"
    swa: str = "auto"
    dynamic_ntk: str | None = None
    # the path of a LoRA adapter's file
    adapter: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def options(self) -> dict[str, Any]:
        """Values by the names of options."""
        values = asdict(self)
        del values["model"]
        return values

    def changed(self, explicit: Collection[str] = ()) -> str:
        """What differs from the defaults, in words, without what is `explicit` now."""
        defaults = KeptSettings().options()
        now = self.options()
        return ", ".join(
            f"{name.replace('_', '-')} {_in_words(value)}"
            for name, value in now.items()
            if value != defaults[name] and name not in explicit
        )


def save(folder: Path, settings: KeptSettings) -> None:
    """Writes the settings into a chat's folder. Raises OutputError."""
    data = json.dumps(asdict(settings), indent=1).encode("ascii") + b"\n"
    try:
        with private_file(folder / SETTINGS) as file:
            file.write(data)
    except OSError as error:
        raise OutputError(
            f"{folder / SETTINGS}: {error.strerror or error}; the settings are not being kept"
        ) from None


def load(folder: Path) -> KeptSettings | None:
    """The settings in a chat's folder, None where there are none, or none that this ggext reads."""
    try:
        document = json.loads(read_plain(folder / SETTINGS, _MAX_BYTES, follow=False))
    except (OSError, ValueError, RecursionError):
        return None
    return parsed(document)


def parsed(document: Any) -> KeptSettings | None:
    """Settings from JSON, None where they are malformed; names that are not known are left out."""
    if not isinstance(document, dict):
        return None
    known = {field.name for field in fields(KeptSettings)}
    values = {name: value for name, value in document.items() if name in known}
    if isinstance(values.get("stop"), list):
        values["stop"] = tuple(values["stop"])
    try:
        return KeptSettings(**values)
    except UsageError:
        return None


def _in_words(value: object) -> str:
    return " ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
