"""The model of the embedding program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ggext import Model


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    with Model(demo_gguf, context=512) as model:
        yield model
