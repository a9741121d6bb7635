"""Sampling: seeds, each sampler alone, values out of range."""

from __future__ import annotations

import pytest
from engine_texts import GREEDY

from ggext.errors import UsageError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime.engine import Sampling, Session  # noqa: E402


def sampled(session: Session, **options: float) -> list[int]:
    session.evaluate([1])
    return list(session.generate(Sampling(**options), 60))  # type: ignore[arg-type]


def test_a_seed_repeats_the_answer(session: Session) -> None:
    assert sampled(session, seed=1) == sampled(session, seed=1)
    assert sampled(session, seed=1) != sampled(session, seed=2)


def test_without_a_seed_answers_differ(session: Session) -> None:
    assert len({tuple(sampled(session, temperature=2)) for _ in range(3)}) > 1


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_each_sampler_alone_can_make_it_greedy(
    session: Session, options: dict[str, float]
) -> None:
    assert sampled(session, temperature=1.5, **options) == sampled(
        session, temperature=0
    )


def test_the_repeat_penalty_sees_the_prompt_and_the_answer(session: Session) -> None:
    session.evaluate([1])
    free = list(session.generate(GREEDY, 40))
    assert len(set(free)) < 40
    session.evaluate([1, free[0], 1])
    penalized = list(session.generate(Sampling(temperature=0, repeat_penalty=100), 40))
    assert len(set(penalized)) == 40
    assert free[0] not in penalized


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repeat_penalty": 0},
        {"seed": 2**32 - 1},
        {"seed": -1},
    ],
)
def test_sampling_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", "-")):
        Sampling(**options)  # type: ignore[arg-type]
