"""What one reading of one text measures, and how it is written down in a partial run."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ggext.quality.needles import Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: task: questions on a made text; text: losses of a document; short: the same in LongPPL's short
#: windows; protocol: losses as published figures define them; divergence: from the first setting.
Kind = Literal["task", "text", "short", "protocol", "divergence"]


@dataclass(frozen=True, order=True)
class Item:
    """One thing to measure in one setting."""

    kind: Kind
    # The task's name; empty for other kinds.
    task: str
    # Tokens.
    length: int
    # Which text of its kind; the same index is the same text in every setting.
    index: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.task}/{self.length}/{self.index}"


@dataclass(frozen=True)
class Losses:
    """What was scored of a text: -log p of its tokens, (n_tokens - 1,), natural logarithm."""

    # The document's name and place.
    name: str
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Diverged:
    """How a setting differs from the first one on a text, (n_tokens - 1,) each."""

    name: str
    kl: NDArray[np.float32]
    same_top: NDArray[np.float32]
    delta_p: NDArray[np.float32]


Result = list[Outcome] | Losses | Diverged


def as_json(result: Result) -> Any:
    """A result in JSON; arrays as base64 of little-endian float32."""
    if isinstance(result, list):
        return [asdict(outcome) for outcome in result]
    return {
        name: value
        if isinstance(value, str)
        else base64.b64encode(value.tobytes()).decode("ascii")
        for name, value in vars(result).items()
    }


def from_json(item: Item, value: Any) -> Result:
    """What `as_json` made. Raises ValueError, TypeError, KeyError for anything else."""
    if item.kind == "task":
        return [Outcome(**outcome) for outcome in value]
    if item.kind == "divergence":
        arrays = {name: _array(value[name]) for name in ("kl", "same_top", "delta_p")}
        return Diverged(str(value["name"]), **arrays)
    return Losses(str(value["name"]), _array(value["values"]))


def _array(text: str) -> NDArray[np.float32]:
    import numpy as np

    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


def parsed_key(key: str) -> Item:
    """The item of a key. Raises ValueError."""
    kind, task, length, index = key.split("/")
    if kind not in ("task", "text", "short", "protocol", "divergence"):
        raise ValueError(f"the kind {kind!r} is unknown")
    return Item(kind, task, int(length), int(index))  # type: ignore[arg-type]
