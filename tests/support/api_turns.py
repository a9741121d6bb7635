"""Turns that the tests of `ggext.Model` ask."""

from __future__ import annotations

from ggext import Sampling
from ggext.demo import sample_text

GREEDY = Sampling(temperature=0)
TEXT = sample_text(300)


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def hides(thing: str, place: str) -> list[dict[str, str]]:
    return user(f"Tom hides the {thing} {place}.\nWhere is the {thing}?")
