"""Llama 4 as it is published, which sees too: what concerns text is Llama 4."""

from __future__ import annotations

from ggext.converters.llama4_text import FAMILY

__all__ = ["FAMILY"]
