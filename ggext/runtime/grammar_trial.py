"""The compile of a large grammar, tried in a child first: it can be ended at any moment.

Inside llguidance nothing can be interrupted. Its limits bound what a grammar may cost, but the row
of items that it searches for each new one makes that a matter of squares. A small grammar is
compiled within a third of a second whatever it says; of a large one a child says how long it takes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from ggext.errors import ModelError, UsageError
from ggext.runtime import child
from ggext.runtime.channel import result_of

#: Symbols of a GBNF grammar, characters of a schema, up to which none is tried.
SMALL_GRAMMAR, SMALL_SCHEMA = 400, 4_000
_MOST = 1.0  # seconds of CPU time
_PATIENCE = 30.0  # seconds by the clock, on a busy machine


def survive(function: str, kind: str, text: str) -> None:
    """Raises UsageError for a grammar that takes more than a second of CPU time to compile, and
    what its compile raises. ``function``: makes it in the child and returns its `seconds`, as
    ``package.module:name``; ``kind``: "grammar" or "schema". Ctrl-C ends the child.

    A child compiles without a trial, as it can itself be ended; so does a program that can start
    none."""
    if child.is_child():
        return
    try:
        process = child.Child("ggext.runtime.child:answer")
    except (ModelError, UsageError):
        return
    with process, process.limited(_PATIENCE):
        process.send({"function": function, "arguments": [kind, text]})
        try:
            reply: Any = process.receive()
        except BaseException:
            process.kill()  # what compiles does not see that its input ended
            raise
        if reply is None or result_of(reply) > _MOST:
            raise UsageError(
                f"the {kind} is too large: it takes more than {_MOST:g} s to compile; make it "
                "smaller"
            )


def seconds(work: Callable[[], object]) -> float:
    """In the child: the CPU time that the work takes. The system ends it when that is far too
    much."""
    if sys.platform != "win32":
        import resource

        most = int(time.process_time()) + 2 + int(_MOST)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    start = time.process_time()
    work()
    return time.process_time() - start
