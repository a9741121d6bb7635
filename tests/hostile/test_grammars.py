"""A stranger's grammar or schema is refused in one line or followed within bounds of time and memory.
GGEXT_LONGER=100 tries more random ones."""

from __future__ import annotations

import os
import random
import sys
import time

import pytest
from hostile.grammars import check, followed, known_cases, random_cases

LONGER = int(os.environ.get("GGEXT_LONGER", "1"))
_STEPS = min(100, 25 * LONGER)


@pytest.mark.skipif(sys.platform != "linux", reason="limits and measures as Linux does")
def test_attacks_on_grammars_and_schemas() -> None:
    pytest.importorskip("llguidance")
    check(followed(known_cases(), _STEPS))


@pytest.mark.skipif(sys.platform != "linux", reason="limits and measures as Linux does")
@pytest.mark.parametrize("seed", range(LONGER))
def test_random_grammars_and_schemas(seed: int) -> None:
    pytest.importorskip("llguidance")
    start = time.monotonic()
    answers = followed(random_cases(random.Random(seed), 200), _STEPS)
    assert time.monotonic() - start < 300
    check(answers)
    assert {bool(said) for *_, said in answers} == {
        True,
        False,
    }  # some are taken, some refused
