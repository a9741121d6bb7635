"""A text that is longer than the context: what can be done about it, in numbers."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_ANSWER = 512  # tokens that a suggested context has beyond the text
_STEP = 1024


@dataclass(frozen=True)
class Room:
    """What bounds a chat's context."""

    # the model's file, as it was named
    path: Path
    # tokens of the context now
    allocated: int
    # tokens that the file is made for
    made_for: int
    # tokens that the model was trained on, before any extension
    trained: int
    # bytes in addition to the weights of a context of so many tokens; None: unknown
    needed: Callable[[int], int] | None
    # of which are keys and values
    cache: Callable[[int], int] | None
    # bytes of memory that are free
    free: int | None
    # the engine's policy for a full context
    when_full: str = "stop"
    # tokens of the context that the policy keeps for itself
    reserved: int = 0
    # how the engine computes, in words
    computes: str = ""

    @property
    def model(self) -> str:
        """The file's name."""
        return self.path.name


def choices(
    room: Room, needed: int, used: int, *, running: bool = True
) -> Iterator[str]:
    """Sentences, one a choice, for a prompt of ``needed`` tokens of which ``used`` are in the
    context already. ``running``: in a chat, where commands can be typed."""
    if running and used and needed - used <= room.allocated:
        yield f"/clear starts over: then all {room.allocated:,} tokens are available and it fits"
        if room.when_full == "stop":
            yield "/when-full turns leaves the oldest turns out, as many as it takes"
    target = -(-(needed + _ANSWER) // _STEP) * _STEP
    memory = _memory(room, target)
    # With self-extend far tokens share the positions that there are.
    if target <= room.made_for or room.when_full == "self-extend":
        command = f"/ctx {target}" if running else f"--ctx {target}"
        yield f"{command} makes a context that holds it{memory}"
    else:
        longer = room.path.with_name(f"{room.path.stem}-{target // 1024}k.gguf")
        command = shlex.join(
            [
                "ggext",
                "convert",
                str(room.path),
                str(longer),
                "--target-context",
                str(target),
            ]
        )
        yield (
            f"{command} makes the file for a longer context, {target / room.trained:.3g} × the "
            f"{room.trained:,} that the model was trained on{memory}"
        )
    if room.when_full == "stop":
        policy = "/when-full POLICY" if running else "--when-full POLICY"
        yield (
            f"{policy} reads a text of any length: of what leaves the context, stream forgets all, "
            "landmark brings back what resembles the question, compress keeps the tokens that "
            "stand out"
        )
    yield "a shorter text, or a part of it at a time"


def _memory(room: Room, tokens: int) -> str:
    if room.needed is None:
        return ""
    size = f": it takes {_size(room.needed(tokens))} in addition to the weights"
    return (
        size if room.free is None else f"{size}, {_size(room.free)} of memory are free"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
