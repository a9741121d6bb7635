"""What stays when the context is full: a file a policy. None of them makes a model attend to more
positions than its table allows; each chooses what stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggext.runtime.memory.options import POLICIES, MemoryOptions, WhenFull

if TYPE_CHECKING:
    from ggext.runtime.cache import Cache
    from ggext.runtime.memory.base import Memory

__all__ = ["POLICIES", "MemoryOptions", "WhenFull", "new_memory"]


def new_memory(cache: Cache, options: MemoryOptions) -> Memory:
    """The policy that the options name. Raises UsageError, or ModelError where the file cannot have
    it."""
    from ggext.runtime.memory.compress import Compress
    from ggext.runtime.memory.landmark import Landmark
    from ggext.runtime.memory.recompute import Recompute
    from ggext.runtime.memory.self_extend import SelfExtend
    from ggext.runtime.memory.stop import Stop
    from ggext.runtime.memory.stream import Stream

    policies: dict[WhenFull, type[Memory]] = {
        "stop": Stop,
        "stream": Stream,
        "recompute": Recompute,
        "self-extend": SelfExtend,
        "landmark": Landmark,
        "compress": Compress,
    }
    return policies[options.when_full](cache, options)
