"""Questions to isolated models, and how to end their processes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

from ggext import Model, Reading, Sampling
from ggext.demo import sample_text
from ggext.runtime.isolated import IsolatedHost

GREEDY = Sampling(temperature=0)
TEXT = sample_text(300)
ANSWER = "Look for the map below."


# No end is allowed: the answer goes on until the context is full.
ENDLESS = Sampling(seed=1, grammar="root ::= [a-z ] root")


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


QUESTION = user("Tom hides the map below.\nWhere is the map?")
LONG = user(f"{TEXT}\nTom hides the map below.\nWhere is the map?")


def pid_of(model: Model) -> int:
    assert isinstance(model._engine, IsolatedHost)
    return model._engine.pid


def kill(model: Model, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid_of(model), number)


def told(model: Model, **options: Any) -> list[object]:
    reply = model.chat(LONG, **options)
    events: list[object] = [
        event for event in reply.events() if not isinstance(event, Reading)
    ]
    return [
        *events,
        reply.finish,
        reply.count,
        reply.dropped,
        reply.forgotten,
        reply.message,
    ]
