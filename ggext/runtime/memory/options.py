"""What stays in a full context, as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ggext.arguments import check_count, check_fields
from ggext.errors import UsageError

WhenFull = Literal["stop", "stream", "recompute", "self-extend", "landmark", "compress"]
POLICIES: tuple[WhenFull, ...] = get_args(WhenFull)


@dataclass(frozen=True)
class MemoryOptions:
    """What a session does when its context is full. All sizes in tokens.

    ``when_full``: the policy. ``sinks``: the first tokens, which never leave. ``evict``: tokens
    that leave at once, None: a quarter of the window. ``block``: landmark stores and compress
    averages such runs. ``retrieved``: blocks that landmark brings back at a time. ``group``:
    positions that self-extend makes one, tokens that compress makes one memory cell. ``spill``: a
    folder where landmark keeps its blocks instead of in memory. Raises UsageError.
    """

    when_full: WhenFull = "stop"
    sinks: int = 4
    evict: int | None = None
    block: int = 128
    retrieved: int = 4
    group: int = 8
    spill: Path | None = None

    @property
    def window(self) -> str:
        """What two sessions must have in common for one to go on with the window of the other."""
        kept = f", {self.retrieved} blocks of {self.block}" if self.when_full == "landmark" else ""
        return f"{self.when_full}, {self.sinks} sinks, {self.evict or 'a quarter'} at once{kept}"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.when_full not in POLICIES:
            raise UsageError(
                f"when-full is {self.when_full!r}, but must be one of {', '.join(POLICIES)}"
            )
        for name, least in (
            ("sinks", 1),
            ("evict", 1),
            ("block", 1),
            ("retrieved", 1),
            ("group", 2),
        ):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value, least)
