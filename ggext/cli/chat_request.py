"""The command line of `ggext chat`, as one request."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ggext.cli.chat_options import template_choice
from ggext.cli.models import GGUF
from ggext.errors import UsageError

if TYPE_CHECKING:
    from ggext.chat.conversation import ChatOptions
    from ggext.runtime.auto import Chosen
    from ggext.runtime.constraint import Grammar
    from ggext.runtime.sampling import Sampling

SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")


@dataclass(frozen=True)
class Request:
    """What is asked, and how."""

    file: Path
    prompt: str | None
    documents: tuple[str, ...]
    ctx: int | Literal["auto"] | None
    threads: int | None
    batch_size: int | None
    flash_attn: str
    gpu_layers: int | None
    kv: str
    swa: str
    adapter: Path | None
    when_full: str
    keep: float
    evicted: str | None
    evicted_memory: int | None
    dynamic_ntk: str | None
    load: Path | None
    session: str | None
    autosave: bool
    think: str | None
    markdown: bool
    json: bool
    sampling: Sampling
    options: ChatOptions
    # the options that the user gave, which count for more than what a kept chat had
    explicit: frozenset[str]
    # what a kept chat had and this one has from it, in words
    as_it_was: str = ""

    @property
    def policy(self) -> str:
        """The engine's policy for a full context: leaving turns out is the chat's affair."""
        return "stop" if self.when_full in ("turns", "auto") else self.when_full

    def with_policy(self, chosen: Chosen) -> Request:
        """With what was chosen for ``auto``."""
        options = replace(self.options, drop_turns=chosen.policy == "turns")
        return replace(self, when_full=chosen.policy, options=options)


def new_request(
    given: Mapping[str, Any], explicit: Collection[str], grammar: Grammar | None
) -> Request:
    """The request of click's values. Raises UsageError, GgufError."""
    from ggext.chat.conversation import ChatOptions
    from ggext.chat.session import kept_chat
    from ggext.gguf.shards import metadata_part
    from ggext.runtime.sampling import Sampling

    values = dict(given)
    session = _session(values.pop("session"), go_on=values.pop("go_on"))
    kept = None if session is None else kept_chat(session)
    as_it_was = ""
    if kept is not None:
        values |= {
            name: value
            for name, value in kept.options().items()
            if name not in explicit
        }
        as_it_was = kept.changed(explicit)
    saved_model = None if kept is None else kept.model
    file, words = _file_and_words(values.pop("model"), values.pop("words"), saved_model)
    prompt = values.pop("prompt")
    if words and prompt is not None:
        raise UsageError(
            f"-p and {' '.join(words)!r:.60} are both a question: give one"
        )
    adapter = values.pop("adapter")
    for path in filter(None, (file, adapter)):
        if not os.path.lexists(path):
            raise UsageError(f"{path}: there is no such file")
    sampling = Sampling(**{name: values.pop(name) for name in SAMPLED}, grammar=grammar)
    think = None if values["think"] is None else values["think"] != "off"
    options = ChatOptions(
        values.pop("system"),
        values.pop("max_tokens"),
        values.pop("stop"),
        think,
        values["when_full"] == "turns",
        template_choice(values.pop("template"), values.pop("template_option")),
    )
    adapter = None if adapter is None else Path(adapter)
    prompt = " ".join(words) if words else prompt
    return Request(
        file=metadata_part(file),
        prompt=prompt,
        session=session,
        adapter=adapter,
        sampling=sampling,
        options=options,
        explicit=frozenset(explicit),
        as_it_was=as_it_was,
        **values,
    )


def _session(name: str | None, *, go_on: bool) -> str | None:
    """The kept chat that is meant."""
    from ggext.chat.session import last_chat

    if not go_on:
        return name
    if name is not None:
        raise UsageError("--continue is for the last chat, --session for a named one")
    return last_chat()


def _file_and_words(
    model: Path | None, words: Sequence[str], kept: str | None
) -> tuple[Path, list[str]]:
    """The model's file, and the words of a question after it. A chat that goes on knows its file;
    then the first word is one only where it names one."""
    if model is not None:
        return model, list(words)
    names_file = bool(words) and (
        words[0].endswith(".gguf") or os.path.exists(words[0])
    )
    if kept and not names_file:
        return Path(kept), list(words)
    if not words:
        raise UsageError("Missing argument 'FILE': the model (.gguf)")
    return GGUF.convert(words[0], None, None), list(words[1:])
