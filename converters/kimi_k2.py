"""Kimi K2: DeepSeek 3 with one group of experts and YaRN with other betas, under another name."""

from __future__ import annotations

from ggext.converters.deepseek_v3 import FAMILY

__all__ = ["FAMILY"]
