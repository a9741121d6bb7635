"""The embedded model as the search takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggext.checkpoint.named import DEMO_MODEL
from ggext.convert import ConvertOptions, convert
from ggext.rope.scaling import RopeScaling


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as it was trained, on 256 tokens."""
    out = tmp_path_factory.mktemp("search") / "plain.gguf"
    convert(ConvertOptions(DEMO_MODEL, out, RopeScaling("none")))
    return out
