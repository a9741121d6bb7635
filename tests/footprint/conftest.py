"""A machine of two cores."""

from __future__ import annotations

import pytest

from ggext.footprint import defaults


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer cores make smaller batches."""
    monkeypatch.setattr(defaults, "physical_cores", lambda: 2)
