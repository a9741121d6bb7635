"""Models whose layers do not all rotate alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from layered import MODELS, SMALL
from tiny import make_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints by the names in ``MODELS``."""
    folder = tmp_path_factory.mktemp("models")
    for name, (model_type, config) in MODELS.items():
        make_model(folder / name, model_type, **SMALL | config)
    return folder
