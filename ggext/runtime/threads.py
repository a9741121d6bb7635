"""How many threads compute, while other programs come and go."""

from __future__ import annotations

import time
from collections.abc import Callable

from ggext.footprint import defaults
from ggext.footprint.machine import CoreUse, core_use

#: Seconds between two looks at how busy the cores are; a look takes some 50 µs.
_EVERY = 2.0
#: Seconds after which the last look says nothing of now: nothing was read in between.
_STALE = 5.0


class Threads:
    """As many as there are cores that other programs leave idle, at most ``most``.

    llama.cpp's threads wait for each other, so that one without a core stops all: SmolLM2-135M with
    both of 2 cores busy wrote 22.9 tokens a second with one thread and 6.6 with two. `look` may
    change ``now``, and calls ``change`` then; with a ``most`` of 0 or 1 it does nothing.
    """

    def __init__(self, now: int, most: int, change: Callable[[int], None]) -> None:
        self.now = now
        self._most = most
        self._change = change
        self._since: CoreUse | None = None

    def look(self) -> None:
        """Between two batches of a text: sees how busy the cores were since the last look, and
        takes more threads or fewer. It never waits."""
        if self._most < 2:
            return
        since = self._since
        passed = None if since is None else time.monotonic() - since.at
        if passed is not None and passed < _EVERY:
            return
        self._since = core_use()
        if passed is None or passed > _STALE:
            return
        threads = defaults.threads_now(self._most, since)
        if threads != self.now:
            self.now = threads
            self._change(threads)
