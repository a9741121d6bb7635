"""How often this process was forked off, without asking the system: getpid takes as long as a
token's other checks.

What was made under another ``count`` belongs to a parent, whose threads are not here.
"""

from __future__ import annotations

import os

count = 0


def _forked() -> None:
    global count
    count += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forked)
