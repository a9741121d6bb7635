"""Models and sessions of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_texts import DOCUMENT

from ggext.runtime.engine import Model, Session


@pytest.fixture(scope="module")
def model(small_gguf: Path) -> Iterator[Model]:
    with Model.open(small_gguf) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with Session(model) as session:
        yield session


@pytest.fixture(scope="module")
def stories(stories_gguf: Path) -> Iterator[Model]:
    """A model whose text is published and whose vocabulary is SentencePiece's."""
    with Model.open(stories_gguf) as model:
        yield model


@pytest.fixture(scope="module")
def story(model: Model) -> list[int]:
    """501 tokens of the embedded document, BOS first."""
    return [model.bos, *model.tokenize(DOCUMENT.read_text())][:501]
