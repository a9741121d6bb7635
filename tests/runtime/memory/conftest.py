"""A model whose context fills up, and a text that fills it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggext.data import demo_language as language
from ggext.runtime.engine import Model


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    """YaRN in keys, with a gain of 1.2: what llama.cpp's own shift destroys."""
    with Model.open(demo_gguf) as model:
        yield model


@pytest.fixture(scope="module")
def text(model: Model) -> list[int]:
    """1,500 tokens of a text."""
    rng = random.Random("text")
    document = language.document(rng, language.facts(rng, language.RECALL_FACTS), 1498)
    return model.tokenize(
        f"{language.BOS}{language.USER}{document}",
        add_special=False,
        parse_special=True,
    )
