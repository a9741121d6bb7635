"""Which policy for a full context, where the program is left to choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ggext.errors import ModelError, UsageError
from ggext.footprint import defaults
from ggext.footprint.planner import Choices
from ggext.runtime import capacity
from ggext.runtime.context import plan_context
from ggext.runtime.engine import Session
from ggext.runtime.memory.options import WhenFull

if TYPE_CHECKING:
    from ggext.runtime.context import Plan, SessionOptions
    from ggext.runtime.model import Model
    from ggext.runtime.prefixes import Prefixes

Policy = WhenFull | Literal["turns"]

#: Of a context, for questions and answers next to a text.
_FOR_QUESTIONS = 4
#: Seconds that reading half of a context again may take now and then.
_PATIENCE = 60.0
#: Of the free memory, for the context and what has left it.
_SHARE = 2
#: Landmark keeps one of so many bytes of the cells that leave.
_KEPT = 14


@dataclass(frozen=True)
class Chosen:
    """A policy, "turns" being the chat's and not the engine's, and why in a clause."""

    policy: Policy
    reason: str

    @property
    def engine(self) -> WhenFull:
        """What the engine does: nothing leaves where the prompt is without its oldest turns."""
        return "stop" if self.policy == "turns" else self.policy

    @property
    def sentence(self) -> str:
        return f"when the context is full: {self.policy}, {self.reason}"


def open_session(
    model: Model, options: SessionOptions, prefixes: Prefixes, text: int = 0
) -> tuple[Session, Chosen]:
    """A context with the policy that suits the model, the memory that is free, and what is asked:
    questions about a text of some ``text`` tokens, or a chat without an end (0). A policy that the
    file or its cache cannot have is passed over. Raises ModelError, UsageError."""
    refused: ModelError | UsageError | None = None
    for chosen in _choices(model, options, plan_context(model, options), text):
        memory = replace(options.memory, when_full=chosen.engine)
        try:
            return Session(model, replace(options, memory=memory), prefixes), chosen
        except (ModelError, UsageError) as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _choices(
    model: Model, options: SessionOptions, plan: Plan, text: int
) -> Iterator[Chosen]:
    """From the best to what every file can have."""
    if text > plan.n_ctx - plan.n_ctx // _FOR_QUESTIONS:
        yield from _for_a_text(model, options, plan, text)
    elif model.chat_template is None:
        yield Chosen("stream", "for a text without turns may go on for ever")
        yield Chosen("recompute", "for the cached keys of this model cannot be moved")
    else:
        yield from _for_a_chat(model, plan)


def _for_a_text(
    model: Model, options: SessionOptions, plan: Plan, text: int
) -> Iterator[Chosen]:
    longer = f"for the text of some {text:,} tokens is longer than the context of {plan.n_ctx:,}"
    if _holds_passages(model, options, plan, text):
        yield Chosen("landmark", f"{longer}, and the memory holds what leaves it")
    yield Chosen("compress", f"{longer}, and the memory does not hold what leaves it")
    yield Chosen(
        "recompute", f"{longer}, and the cached keys of this model cannot be moved"
    )


def _for_a_chat(model: Model, plan: Plan) -> Iterator[Chosen]:
    turns = Chosen(
        "turns", "for a chat keeps its system prompt and its latest turns whole"
    )
    if model.offloads or _seconds_to_read(model, plan) <= _PATIENCE:
        yield turns
        return
    yield Chosen("stream", "for reading the latest turns again would take minutes")
    yield turns


def _seconds_to_read(model: Model, plan: Plan) -> float:
    """Half of the context again, which leaving turns out comes to."""
    work = plan.n_ctx / 2 * 2 * model.n_params
    return work / (defaults.SPEED * plan.threads.now)


def _holds_passages(
    model: Model, options: SessionOptions, plan: Plan, text: int
) -> bool:
    """Whether the memory holds what landmark keeps of the text next to the context; yes where
    nothing is known of it."""
    choices = Choices(
        options.kv_type,
        plan.batches.most,
        options.flash_attention,
        options.swa,
        moves=True,
    )
    room = capacity.room(model, choices)
    if room is None or room.free is None or options.memory.spill is not None:
        return True
    kept = room.cache(plan.n_ctx) + room.cache(text) // _KEPT
    return kept <= room.free // _SHARE
