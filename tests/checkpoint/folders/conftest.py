"""A tiny checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import make_model

numpy_files = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(
        tmp_path_factory.mktemp("folders") / "llama", tie_word_embeddings=True
    )


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))
