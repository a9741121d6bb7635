"""What an engine in a child process and its parent say to each other, as JSON.

Requests go to the child as ``{"id", "call", ...}``, with ids that grow. Replies name the id:
``result`` or ``error`` end a call; ``happened`` is a parcel of what an answer reports, the last of
which is its end; ``loaded`` is how much of a model is read, 0 to 1. Two calls have no reply of
their own: ``cancel`` ends the call of that id, ``taken`` says how many parcels of it were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ggext.errors import UsageError
from ggext.runtime.answering import End, Happening, Question
from ggext.runtime.channel import error_as_json, error_of
from ggext.runtime.constraint import JsonGrammar
from ggext.runtime.context import SessionOptions
from ggext.runtime.engine import Prefill, Sampling
from ggext.runtime.host import Host, Opening
from ggext.runtime.memory.options import MemoryOptions
from ggext.runtime.prefixes import PrefixOptions


def opening_as_json(opening: Opening) -> dict[str, Any]:
    """Raises UsageError for what is only in one process."""
    session = opening.session
    if session.eval_callback is not None:
        raise UsageError(
            "an eval_callback is called in the process of llama.cpp: not with isolated"
        )
    memory = asdict(session.memory)
    memory["spill"] = _absolute(session.memory.spill)
    others = {"memory": memory, "adapter": _absolute(session.adapter)}
    return {
        "path": str(opening.path.absolute()),
        "session": asdict(replace(session, memory=MemoryOptions())) | others,
        "gpu_layers": opening.gpu_layers,
        "parallel": opening.parallel,
        "auto": opening.auto,
        "cache": asdict(opening.cache) | {"folder": _absolute(opening.cache.folder)},
    }


def opening_of(saved: Mapping[str, Any]) -> Opening:
    memory = dict(saved["session"]["memory"])
    memory["spill"] = _path(memory["spill"])
    cache = dict(saved["cache"])
    cache["folder"] = _path(cache["folder"])
    adapter = _path(saved["session"]["adapter"])
    others = {"memory": MemoryOptions(**memory), "adapter": adapter}
    session = SessionOptions(**saved["session"] | others)
    return Opening(
        Path(saved["path"]),
        session,
        saved["gpu_layers"],
        saved["parallel"],
        PrefixOptions(**cache),
        saved["auto"],
    )


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _path(saved: str | None) -> Path | None:
    return None if saved is None else Path(saved)


def facts_of(host: Host) -> dict[str, Any]:
    """What the parent must know of an open model. Two files that say the same here may take each
    other's place under a conversation."""
    model = host.model
    return {
        "context": host.context,
        "limit": host.limit,
        "notices": list(host.notices),
        "chosen": None if host.chosen is None else asdict(host.chosen),
        "vocabulary": {
            "path": str(model.path),
            "chat_template": model.chat_template,
            "adds_bos": model.adds_bos,
            "bos": model.bos,
            "eos": model.eos,
            "n_vocab": model.n_vocab,
            "n_ctx_original": model.n_ctx_original,
            "bytes": model.size,
            "mtime": model.header.mtime_ns,
        },
    }


def question_as_json(question: Question) -> dict[str, Any]:
    return {
        "tokens": list(question.tokens),
        "sampling": asdict(question.sampling),
        "max_tokens": question.max_tokens,
    }


def question_of(saved: Mapping[str, Any]) -> Question:
    sampling = dict(saved["sampling"])
    if isinstance(sampling["grammar"], dict):
        sampling["grammar"] = JsonGrammar(**sampling["grammar"])
    return Question(saved["tokens"], Sampling(**sampling), saved["max_tokens"])


def parcel_as_json(parcel: Iterable[Happening]) -> list[Any]:
    """A token is its number and a count two, as almost all of a parcel is tokens."""
    return [_happening_as_json(happening) for happening in parcel]


def parcel_of(saved: Iterable[Any]) -> list[Happening]:
    return [_happening_of(happening) for happening in saved]


def _happening_as_json(happening: Happening) -> Any:
    if isinstance(happening, Prefill):
        return {"prefill": asdict(happening)}
    if isinstance(happening, End):
        error = None if happening.error is None else error_as_json(happening.error)
        return {
            "end": {
                "finish": happening.finish,
                "dropped": happening.dropped,
                "forgotten": happening.forgotten,
                "error": error,
            }
        }
    return happening


def _happening_of(saved: Any) -> Happening:
    if isinstance(saved, int):
        return saved
    if isinstance(saved, list):
        done, total = saved
        return done, total
    if "prefill" in saved:
        return Prefill(**saved["prefill"])
    end = saved["end"]
    error = None if end["error"] is None else error_of(end["error"])
    return End(end["finish"], error, end["dropped"], end["forgotten"])
