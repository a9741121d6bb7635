"""``config.json``, read through typed accessors: a missing value, a wrong type and a value out of
range are three different messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggext.checkpoint.contents import refusal
from ggext.checkpoint.files import read_json
from ggext.errors import CheckpointError

_MISSING: Any = object()
#: Sizes that multiply: far above what is published, and far below what takes all memory before a
#: tensor is seen.
_MAXIMA = {
    "hidden_size": 1 << 20,
    "head_dim": 1 << 12,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "num_hidden_layers": 1 << 12,
    "num_experts": 1 << 13,
    "num_local_experts": 1 << 13,
    "n_routed_experts": 1 << 13,
}
_MAX_FLOAT32 = (
    3.4028234663852886e38  # all numbers of a model become float32 in the file
)


@dataclass(frozen=True)
class Config:
    """``values``: the parsed object. ``source``: what messages call the file."""

    values: Mapping[str, Any]
    source: str

    def with_values(self, **changed: Any) -> Config:
        """The same configuration with these values in place of its own."""
        return replace(self, values={**self.values, **changed})

    def integer(
        self, *names: str, default: int | None = _MISSING, minimum: int = 1
    ) -> Any:
        """The first of ``names`` that is set, as an int of at least ``minimum``."""
        value = self._first(names, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(names, value, "a whole number")
        maximum = _MAXIMA.get(names[0], (1 << 31) - 1)
        if not minimum <= value <= maximum:
            raise self._wrong(names, value, f"between {minimum} and {maximum}")
        return value

    def number(
        self, *names: str, default: float | None = _MISSING, minimum: float = 0.0
    ) -> Any:
        """The first of ``names`` that is set, as a float of at least ``minimum`` that a float32 can
        hold."""
        value = self._first(names, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(names, value, "a number")
        if not minimum <= value <= _MAX_FLOAT32:  # NaN too
            raise self._wrong(names, value, f"at least {minimum:g} and finite")
        return float(value)

    def string(self, *names: str, default: str | None = _MISSING) -> Any:
        value = self._first(names, default)
        if value is not default and not isinstance(value, str):
            raise self._wrong(names, value, "a string")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        value = self._first(names, default)
        if not isinstance(value, bool):
            raise self._wrong(names, value, "true or false")
        return value

    def section(self, name: str) -> dict[str, Any]:
        """An object within; an empty one where it is missing."""
        value = self._first((name,), {})
        if not isinstance(value, dict):
            raise self._wrong((name,), value, "an object")
        return value

    def _first(self, names: tuple[str, ...], default: Any) -> Any:
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        if default is _MISSING:
            raise CheckpointError(
                f"{self.source}: {names[0]} is missing; the model cannot be built without it"
            )
        return default

    def _wrong(
        self, names: tuple[str, ...], value: Any, accepted: str
    ) -> CheckpointError:
        name = next(n for n in names if self.values.get(n) is not None)
        return CheckpointError(
            f"{self.source}: {name} is {_short(value)}; it must be {accepted}"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_config(folder: Path) -> Config:
    """The checkpoint's ``config.json``, or ``CheckpointError`` when ``folder`` is not a model's
    folder."""
    path = folder / "config.json"
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file, not a checkpoint; give a Hugging Face model's folder or id"
        )
    if not path.is_file():
        raise refusal(
            folder,
            "is not a model: it has no config.json; give a Hugging Face model's folder or a .gguf "
            "file",
        )
    return Config(dict(read_json(path) or {}), str(path))
