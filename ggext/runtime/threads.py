"""How many threads compute, while other programs come and go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ggext.footprint import defaults
from ggext.footprint.machine import CoreUse, core_use

#: Seconds between two looks at how busy the cores are; a look takes some 50 µs.
_EVERY = 2.0
#: Seconds after which the last look says nothing of now: nothing was read in between.
_STALE = 5.0


@dataclass(frozen=True)
class ThreadCounts:
    """Threads of a context."""

    # That read a text.
    now: int
    # How many may, once cores are idle; 0: that is not looked at.
    most: int
    # That compute one token alone, as an answer is written; 0: as many as read.
    writing: int

    @property
    def for_one(self) -> int:
        return self.writing or self.now


def thread_counts(
    chosen: int | None, most: int, flash_attention: bool, since: CoreUse | None
) -> ThreadCounts:
    """``chosen``: by the user; else as many as idle cores, at most ``most``. ``since``: as
    `machine.idle_cores` has it.

    With flash attention threads share the keys of a single token, so that the last bits of its
    numbers depend on how many they are. Several tokens are shared out whole.
    """
    if chosen is not None:
        return ThreadCounts(chosen, 0, 0)
    writing = most if flash_attention else 0
    return ThreadCounts(defaults.threads_now(most, since), most, writing)


class Threads:
    """As many as there are cores that other programs leave idle.

    llama.cpp's threads wait for each other, so that one without a core stops all: SmolLM2-135M with
    both of 2 cores busy wrote 22.9 tokens a second with one thread and 6.6 with two. `look` may
    change ``counts``, and calls ``change`` then; with a ``most`` of 0 or 1 it does nothing.
    """

    def __init__(
        self, counts: ThreadCounts, change: Callable[[ThreadCounts], None]
    ) -> None:
        self.counts = counts
        self._change = change
        self._since: CoreUse | None = None

    def look(self) -> None:
        """Between two batches of a text: sees how busy the cores were since the last look, and
        takes more threads or fewer. It never waits."""
        most = self.counts.most
        if most < 2:
            return
        since = self._since
        passed = None if since is None else time.monotonic() - since.at
        if passed is not None and passed < _EVERY:
            return
        self._since = core_use()
        if passed is None or passed > _STALE:
            return
        now = defaults.threads_now(most, since)
        if now != self.counts.now:
            self.counts = replace(self.counts, now=now)
            self._change(self.counts)
