"""A part of the terminal that is painted again and again, without any agreement about how wide
characters are.

Terminals disagree about the width of Hindi, Thai, flags and skin tones, and some wrap what stands
on them again when the window changes. So nothing here counts rows over time: lines are painted with
the terminal's autowrap switched off, so that each takes one row however wide the terminal believes
it is, and in the same write the cursor goes back up to the first of them. There it stays, also
while the terminal wraps again; the next painting clears what stands below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType
    from rich.segment import Segment

_CLEAR_ROW = "\r\x1b[2K"
# Everything from this row on. Not from the first column of the screen: there tmux takes it for a
# new screen and puts what was there into its history.
_CLEAR_BELOW = f"\r \x1b[J{_CLEAR_ROW}"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
#: Of the screen, so that the first line is never scrolled off it.
_SPARE_ROWS = 2


class Region:
    """The rows from the cursor on. Empty until it is painted; `wipe` empties it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._painted = False

    @property
    def height(self) -> int:
        """Lines that fit."""
        return max(self._console.height - _SPARE_ROWS, 1)

    def paint(self, lines: Sequence[Sequence[Segment]]) -> None:
        """Shows these lines, the last that fit, in place of what was there."""
        from rich.segment import Segments

        rows = []
        for line in lines[-self.height :]:
            with self._console.capture() as captured:
                self._console.print(Segments(line), end="")
            rows.append(captured.get())
        *before, last = rows or [""]
        text = "".join(f"{_CLEAR_ROW}{row}\r\n" for row in before)
        up = f"\x1b[{len(before)}A" if before else ""
        self._write(f"{_HIDE}{_NO_WRAP}{text}{_CLEAR_BELOW}{last}{_WRAP}\r{up}")
        self._painted = True

    def show(self, renderable: RenderableType) -> None:
        """`paint` of anything that rich can render."""
        self.paint(self._console.render_lines(renderable, pad=False))

    def wipe(self) -> bool:
        """Takes everything off the screen again; whether there was anything."""
        painted = self._painted
        self._painted = False
        if painted:
            self._write(f"{_CLEAR_BELOW}{_SHOW}")
        return painted

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
