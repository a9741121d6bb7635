"""The embedded model, in a process of its own and inside this one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ggext import Model


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> Iterator[Model]:
    with Model(demo_gguf, context=512, isolated=True) as model:
        yield model


@pytest.fixture(scope="module")
def inside(demo_gguf: Path) -> Iterator[Model]:
    """The same in this process."""
    with Model(demo_gguf, context=512) as model:
        yield model
