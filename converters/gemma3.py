"""Gemma 3 that sees too: what concerns text is Gemma 3."""

from __future__ import annotations

from ggext.converters.gemma3_text import FAMILY

__all__ = ["FAMILY"]
