"""What stays in a full context, as it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ggext.arguments import check_count, check_fields
from ggext.errors import UsageError

WhenFull = Literal["stop", "stream", "recompute", "self-extend", "landmark", "compress"]
POLICIES: tuple[WhenFull, ...] = get_args(WhenFull)
#: What becomes of tokens that leave: nothing, or their text and a fifteenth of their cells are
#: kept, for a question to bring passages back.
Evicted = Literal["dropped", "kept"]
EVICTED: tuple[Evicted, ...] = get_args(Evicted)
#: One of so many cells is for what comes back, by itself. compress: SmolLM2 answered more of its
#: questions the fewer cells stood around those that came back.
_COMES_BACK = {"landmark": 4, "compress": 2}


@dataclass(frozen=True)
class MemoryOptions:
    """What a session does when its context is full. All sizes in tokens. Raises UsageError."""

    # The policy.
    when_full: WhenFull = "stop"
    # The first tokens, which never leave.
    sinks: int = 4
    # Tokens that leave at once; None: a quarter of the window, of compress an eighth.
    evict: int | None = None
    # What becomes of tokens that leave (landmark, compress); None: landmark keeps them, for a
    # question to bring passages back, compress drops them.
    evicted: Evicted | None = None
    # Cells for what comes back; None: of landmark a quarter, of compress a half of the context.
    retrieved: int | None = None
    # Positions that self-extend makes one.
    group: int = 8
    # A folder for the keys of what is kept, instead of memory.
    spill: Path | None = None
    # Bytes that what is kept may take, in memory or in that folder: the oldest is forgotten for
    # what leaves later. None: a quarter of what is free when the context is opened.
    evicted_memory: int | None = None
    # The context has this share of the cells that its tokens would take (compress): 0.25 holds a
    # text in a quarter of the memory.
    keep: float = 1.0

    @property
    def window(self) -> str:
        """What two sessions must have in common for one to go on with the window of the other."""
        back = self.retrieved or "a part"
        kept = f", {back} back" if self.brings_back else ""
        part = "an eighth" if self.when_full == "compress" else "a quarter"
        return (
            f"{self.when_full}, {self.sinks} sinks, {self.evict or part} at once{kept}"
        )

    @property
    def leaves_as(self) -> Evicted:
        """What becomes of tokens that leave."""
        return self.evicted or ("kept" if self.when_full == "landmark" else "dropped")

    @property
    def brings_back(self) -> bool:
        """Whether a question brings back tokens that left."""
        return self.leaves_as != "dropped"

    def come_back(self, n_ctx: int) -> int:
        """Cells of a context that are for what comes back."""
        if not self.brings_back:
            return 0
        return self.retrieved or max(n_ctx // _COMES_BACK[self.when_full], 1)

    def of(self, policy: WhenFull) -> MemoryOptions:
        """These options for a context that is there, with another policy: what `keep` meant is in
        the number of its cells by now."""
        evicted = self.evicted if policy in _COMES_BACK else None
        if policy == "landmark" and evicted == "dropped":
            evicted = None
        return replace(self, when_full=policy, keep=1.0, evicted=evicted)

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
        self._check_evicted()
        for name, least in (
            ("sinks", 1),
            ("evict", 1),
            ("retrieved", 1),
            ("group", 2),
        ):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value, least)

    def _check_evicted(self) -> None:
        if self.evicted is not None and self.evicted not in EVICTED:
            raise UsageError(
                f"evicted is {self.evicted!r}, but must be one of {', '.join(EVICTED)}"
            )
        if self.evicted_memory is not None and self.evicted_memory < 1:
            raise UsageError(
                f"evicted_memory is {self.evicted_memory}, but must be a number of bytes, 1 or more"
            )
        if self.evicted == "dropped" and self.when_full == "landmark":
            raise UsageError(
                "landmark brings back what left, so evicted cannot be dropped: take kept, or "
                "the policy stream"
            )
        if self.evicted is not None and self.when_full not in _COMES_BACK:
            raise UsageError(
                f"evicted is {self.evicted!r}, but only landmark and compress bring back what "
                f"left: take one of them in place of {self.when_full}"
            )
