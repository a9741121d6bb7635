"""How many tables on how many texts a search measures, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

from ggext.errors import UsageError
from ggext.quality.bench import Speed
from ggext.search.descent import rounds_of
from ggext.search.objective import Objective, ShortTexts
from ggext.search.options import SearchOptions

#: Tables, texts to search on, texts to judge on: the first that the budget allows.
_SIZES = ((40, 16, 32), (40, 8, 32), (36, 6, 16), (32, 4, 16), (24, 4, 12), (16, 2, 10))
#: Questions after a text, their answers and what else llama.cpp does.
_OVERHEAD = 1.15


@dataclass(frozen=True)
class Plan:
    """What is to be measured. Texts have the target's length, but for the short ones."""

    evaluations: int
    training: int
    held_out: int
    # About the losses to measure, and the tokens and seconds that they take; what an earlier run
    # left is counted too.
    losses: int = 0
    tokens: int = 0
    seconds: float = 0.0
    # What the user should know.
    notes: tuple[str, ...] = ()


def planned(
    options: SearchOptions,
    objective: Objective,
    short: ShortTexts,
    speed: Speed,
    kept: Plan | None,
) -> Plan:
    """The largest plan that the budget allows, or what is asked for. ``kept``: that of the run that
    goes on. Raises UsageError where the budget allows none, or the documents do not suffice."""
    for evaluations, training, held_out in _SIZES:
        first = Plan(evaluations, training, held_out)
        numbers = first if kept is None else kept
        plan = _costed(
            _as_asked(numbers, options, objective),
            (options.target_context, objective, short, speed),
        )
        explicit = None not in (options.evaluations, options.training, options.held_out)
        if plan.seconds <= options.budget or explicit or kept is not None:
            return plan
    raise UsageError(
        f"the smallest search to {options.target_context:,} tokens takes about "
        f"{plan.seconds:,.0f} s here, and the budget is {options.budget:,.0f} s: give it the time, "
        "or a shorter target"
    )


def _as_asked(plan: Plan, options: SearchOptions, objective: Objective) -> Plan:
    plan = replace(
        plan,
        evaluations=options.evaluations or plan.evaluations,
        training=options.training or plan.training,
        held_out=options.held_out or plan.held_out,
        notes=objective.notes,
    )
    for name in ("training", "held_out"):
        count = getattr(options, name)
        available = len(getattr(objective, name))
        if count is not None and count > available:
            raise UsageError(
                f"{name} is {count}, but the documents hold {available} texts of "
                f"{options.target_context:,} tokens for it: give more, or ask for fewer"
            )
    return replace(
        plan,
        training=min(plan.training, len(objective.training)),
        held_out=min(plan.held_out, len(objective.held_out)),
    )


def _costed(plan: Plan, costs: tuple[int, Objective, ShortTexts, Speed]) -> Plan:
    length, objective, short, speed = costs
    # New tables come in every round; those that survive one are read on its further texts alone.
    losses = plan.evaluations * fmean(rounds_of(plan.training)) + 2 * plan.held_out
    readings = losses + objective.overhead * (plan.training + plan.held_out)
    short_texts = plan.evaluations * len(short.training) + 2 * len(short.held_out)
    short_tokens = short_texts * short.length
    seconds = readings * speed.seconds(length) + speed.linear * short_tokens
    tokens = round(readings * length + short_tokens)
    return replace(
        plan, losses=round(losses), tokens=tokens, seconds=_OVERHEAD * seconds
    )
