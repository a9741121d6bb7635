"""Options, measures and files of the tests of full contexts."""

from __future__ import annotations

import math
from typing import Any

from ggext.quality.perplexity import nll
from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions
from ggext.runtime.memory import WhenFull

SMALL = {"retrieved": 64}  # what a cache of 256 tokens has room for


def options(
    when_full: WhenFull, n_ctx: int = 256, kv_type: str = "f16", **memory: Any
) -> SessionOptions:
    return SessionOptions(
        n_ctx=n_ctx, kv_type=kv_type, memory=MemoryOptions(when_full, **memory)
    )


def perplexity(model: Model, tokens: list[int], made: SessionOptions) -> float:
    with Session(model, made) as session:
        return math.exp(nll(session, tokens).mean())
