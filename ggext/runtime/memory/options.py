"""What stays in a full context, as it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ggext.arguments import check_count, check_fields
from ggext.errors import UsageError

WhenFull = Literal["stop", "stream", "recompute", "self-extend", "landmark", "compress"]
POLICIES: tuple[WhenFull, ...] = get_args(WhenFull)


@dataclass(frozen=True)
class MemoryOptions:
    """What a session does when its context is full. All sizes in tokens. Raises UsageError."""

    # The policy.
    when_full: WhenFull = "stop"
    # The first tokens, which never leave.
    sinks: int = 4
    # Tokens that leave at once; None: a quarter of the window.
    evict: int | None = None
    # Landmark stores runs of this many tokens.
    block: int = 128
    # Blocks that landmark brings back at a time.
    retrieved: int = 4
    # Positions that self-extend makes one.
    group: int = 8
    # A folder where landmark keeps its blocks instead of in memory.
    spill: Path | None = None
    # The context has this share of the cells that its tokens would take (compress): 0.25 holds a
    # text in a quarter of the memory.
    keep: float = 1.0

    @property
    def window(self) -> str:
        """What two sessions must have in common for one to go on with the window of the other."""
        kept = (
            f", {self.retrieved} blocks of {self.block}"
            if self.when_full == "landmark"
            else ""
        )
        return f"{self.when_full}, {self.sinks} sinks, {self.evict or 'a quarter'} at once{kept}"

    def cells(self, tokens: int) -> int:
        """Cells of the context that is to hold a text of `tokens`."""
        return max(math.ceil(self.keep * tokens), 1)

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.keep <= 1:
            raise UsageError(
                f"keep is {self.keep:g}, but must be a share above 0, at most 1"
            )
        if self.keep < 1 and self.when_full != "compress":
            raise UsageError(
                f"keep is {self.keep:g}, but only the policy compress reads a text into fewer "
                f"cells: take it in place of {self.when_full}"
            )
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
