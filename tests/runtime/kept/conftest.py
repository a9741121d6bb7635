"""Sessions on the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kept_chats import Open

if TYPE_CHECKING:
    from ggext.runtime.engine import Model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, for 2,048 tokens."""
    from ggext.checkpoint.named import DEMO_MODEL
    from ggext.convert import ConvertOptions, convert
    from ggext.rope.scaling import RopeScaling

    path = tmp_path_factory.mktemp("session") / "demo.gguf"
    convert(ConvertOptions(DEMO_MODEL, path, RopeScaling("yarn", factor=8)))
    return path


@pytest.fixture
def model(model_path: Path) -> Iterator[Model]:
    from ggext.runtime.engine import Model

    with Model.open(model_path) as model:
        yield model


@pytest.fixture
def open_session(model: Model) -> Iterator[Open]:
    from contextlib import ExitStack

    from ggext.runtime.engine import Session, SessionOptions

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            Session(model, SessionOptions(**options))
        )
