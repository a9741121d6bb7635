"""A clock that stands still."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers take no time, so that a status line can be compared."""
    monkeypatch.setattr(
        "ggext.chat.conversation.time", SimpleNamespace(perf_counter=lambda: 0.0)
    )
