"""A text that is longer than the context: what can be done about it, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_ANSWER = 512  # tokens that a suggested context has beyond the text
_STEP = 1024


@dataclass(frozen=True)
class Room:
    """What bounds a chat's context. Tokens: ``allocated`` now, ``made_for`` by the file,
    ``trained`` before any extension. Bytes: ``needed`` by a context of so many tokens beside the
    weights, of which ``cache`` is keys and values (None: unknown), and ``free`` memory.
    ``when_full``: the engine's policy for a full context."""

    model: str
    allocated: int
    made_for: int
    trained: int
    needed: Callable[[int], int] | None
    cache: Callable[[int], int] | None
    free: int | None
    when_full: str = "stop"


def choices(room: Room, needed: int, used: int) -> Iterator[str]:
    """Sentences, one a choice, for a prompt of ``needed`` tokens of which ``used`` are in the
    context already."""
    if used and needed - used <= room.allocated:
        yield f"/clear starts over: then all {room.allocated:,} tokens are available and it fits"
    target = -(-(needed + _ANSWER) // _STEP) * _STEP
    memory = _memory(room, target)
    if (
        target <= room.made_for or room.when_full == "self-extend"
    ):  # far tokens share the positions that there are
        yield f"--ctx {target} makes a context that holds it{memory}"
    else:
        yield (
            f"ggext convert {room.model} LONGER.gguf --target-context {target} makes the file for "
            "a longer context, "
            f"{target / room.trained:.3g} × the {room.trained:,} that the model was trained "
            f"on{memory}"
        )
    if room.when_full == "stop":
        yield (
            "--when-full reads a text of any length: of what leaves the context, stream forgets "
            "all, landmark brings "
            "back what resembles the question, compress keeps averages of the latest"
        )
    yield "a shorter text, or a part of it at a time"


def _memory(room: Room, tokens: int) -> str:
    if room.needed is None:
        return ""
    size = f": it takes {_size(room.needed(tokens))} beside the weights"
    return size if room.free is None else f"{size}, {_size(room.free)} of memory are free"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
