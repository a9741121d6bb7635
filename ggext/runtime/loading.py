"""How far a load is, reported on the thread that waits for it, and its stop."""

from __future__ import annotations

from collections.abc import Callable

LoadProgress = Callable[[float], bool]


class Loading:
    """llama.cpp's progress callback, in the thread that loads, and what it says passed to the
    thread that waits."""

    def __init__(self, progress: LoadProgress | None) -> None:
        self._progress = progress
        self._fraction = 0.0
        self._reported = -1.0
        self.stopped = False

    def __call__(self, fraction: float, _user_data: object) -> bool:
        self._fraction = fraction
        return not self.stopped

    def tell(self) -> None:
        """Calls ``progress`` where there is something new; it may stop the load."""
        fraction = self._fraction
        if (
            self._progress is not None
            and not self.stopped
            and fraction != self._reported
        ):
            self._reported = fraction
            self.stopped = not self._progress(fraction)

    def stop(self) -> None:
        """Ends the load with the next tensor."""
        self.stopped = True
